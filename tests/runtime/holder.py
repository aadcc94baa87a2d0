"""A server that holds one kind of state and answers each connection with what it finds in it.

Its argument names the kind, a generator that sets its state up and then gives the same answer each time it is
asked, in every copy. It runs inside containers: the standard library only.
"""

import ctypes
import fcntl
import mmap
import multiprocessing
import os
import select
import socket
import subprocess
import sys
import threading
import time
from multiprocessing import shared_memory


def shared_memory_file():
    with open("/dev/shm/block", "wb+") as file:
        file.truncate(8 << 20)
        view = mmap.mmap(file.fileno(), 8 << 20)
    view[5_000_000:5_000_006] = b"shared"
    child = subprocess.Popen(["sleep", "100000"])
    while True:
        with open("/dev/shm/block", "rb") as file:
            file.seek(5_000_000)
            yield f"{view[5_000_000:5_000_006]} {file.read(6)} {child.poll()}"


def anonymous_shared_memory():
    view = mmap.mmap(-1, 4 << 20)
    ask, told = os.pipe(), os.pipe()
    if os.fork() == 0:
        while os.read(ask[0], 1):
            view[0:5] = b"child"
            os.write(told[1], b".")
        os._exit(0)
    while True:
        view[0:5] = b"-----"
        os.write(ask[1], b".")
        os.read(told[0], 1)
        yield str(view[0:5])


def _square(number):
    return number * number


def process_pool():
    """Semaphores are files in /dev/shm whose names are gone: CRIU's link-remap."""
    pool = multiprocessing.get_context("fork").Pool(2)
    lock = multiprocessing.Lock()
    while True:
        with lock:
            yield str(pool.map(_square, range(5)))


_WORKER = """
import mmap, os, socket, sys
from multiprocessing import shared_memory
block = shared_memory.SharedMemory(name=sys.argv[2])
scratch = mmap.mmap(int(sys.argv[3]), 1 << 20)
with socket.socket(socket.AF_UNIX) as router:
    router.connect("/tmp/router.sock")
    router.sendall(sys.argv[1].encode())
    while asked := router.recv(1):
        number = int.from_bytes(block.buf[:4], "little") * 2
        scratch[:4] = number.to_bytes(4, "little")
        router.sendall(asked)
"""


def engine_processes():
    """The shape of an inference engine: a front end and two workers that are programs of their own.

    They meet over unix sockets (as ZeroMQ's ipc has them), a named block of shared memory with its resource
    tracker, and a memfd that was handed down.
    """
    block = shared_memory.SharedMemory(create=True, size=4 << 20)
    scratch_fd = os.memfd_create("scratch")
    os.ftruncate(scratch_fd, 1 << 20)
    scratch = mmap.mmap(scratch_fd, 1 << 20)
    front = socket.socket(socket.AF_UNIX)
    front.bind("/tmp/router.sock")
    front.listen()
    workers = []
    for letter in "ab":
        argv = [sys.executable, "-c", _WORKER, letter, block.name, str(scratch_fd)]
        subprocess.Popen(argv, pass_fds=[scratch_fd])
        worker, _ = front.accept()
        workers.append((worker.recv(1).decode(), worker))
    while True:
        found = []
        for position, (letter, worker) in enumerate(workers, 20):
            block.buf[:4] = position.to_bytes(4, "little")
            worker.sendall(b".")
            worker.recv(1)
            found.append((letter, int.from_bytes(scratch[:4], "little")))
        yield str(found)


def threads():
    asked, answers = threading.Semaphore(0), []
    told = threading.Semaphore(0)

    def work(number):
        while True:
            asked.acquire()
            answers.append(number)
            told.release()
            time.sleep(0.2)

    for number in range(4):
        threading.Thread(target=work, args=(number,), daemon=True).start()
    while True:
        answers.clear()
        for _ in range(4):
            asked.release()
        for _ in range(4):
            told.acquire()
        yield str(sorted(answers))


def unix_socket():
    server = socket.socket(socket.AF_UNIX)
    server.bind("/tmp/server.sock")
    server.listen()
    left, right = socket.socketpair()
    while True:
        client = socket.socket(socket.AF_UNIX)
        client.connect("/tmp/server.sock")
        accepted, _ = server.accept()
        accepted.sendall(b"through a name")
        left.sendall(b" and a pair")
        yield str(client.recv(99) + right.recv(99))
        client.close()
        accepted.close()


def unix_socket_connected():
    server = socket.socket(socket.AF_UNIX)
    server.bind("/tmp/connected.sock")
    server.listen()
    client = socket.socket(socket.AF_UNIX)
    client.connect("/tmp/connected.sock")
    accepted, _ = server.accept()
    while True:
        accepted.sendall(b"still connected")
        yield str(client.recv(99))


def files():
    """Written to the root, the working folder, /tmp; one is open in the middle."""
    os.makedirs("/made/here")
    for path in ("/made/here/a", "/tmp/b"):
        with open(path, "w") as file:
            file.write(f"in {path}")
    opened = open("/made/here/a")
    opened.read(3)
    while True:
        place = opened.tell()
        yield f"{opened.read()} {open('/tmp/b').read()}"
        opened.seek(place)


def deleted_file():
    """No name is left of them, on the root as in /tmp: CRIU's ghost files."""
    opened = []
    for path in ("/ghost", "/tmp/ghost", "/dev/shm/ghost"):
        opened.append(open(path, "w+b"))
        opened[-1].write(b"x" * (2 << 20) + path.encode())
        opened[-1].flush()
        os.unlink(path)
    while True:
        for file in opened:
            file.seek(2 << 20)
        yield str([file.read() for file in opened])


def file_locks():
    held = []
    for path, lock in (("/tmp/flock", fcntl.flock), ("/tmp/lockf", fcntl.lockf)):
        held.append(open(path, "w"))
        lock(held[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
    program = (
        "import fcntl, sys\n"
        "for path, lock in (('/tmp/flock', fcntl.flock), ('/tmp/lockf', fcntl.lockf)):\n"
        "    try:\n        lock(open(path, 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB); print('free')\n"
        "    except OSError:\n        print('held')\n"
    )
    while True:
        yield subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout


def event_loop():
    """epoll, eventfd, a timer and a signal's descriptor, as asyncio and libuv have them."""
    poller, event = select.epoll(), os.eventfd(0)
    poller.register(event, select.EPOLLIN)
    libc = ctypes.CDLL(None)
    timer = libc.timerfd_create(1, 0)
    watch = libc.inotify_init1(0)
    libc.inotify_add_watch(watch, b"/tmp", 0x100)
    while True:
        os.eventfd_write(event, 3)
        ready = [fd for fd, _ in poller.poll(5)]
        open("/tmp/new", "w").close()
        os.remove("/tmp/new")
        seen = bool(select.select([watch], [], [], 5)[0]) and bool(os.read(watch, 4096))
        yield f"{ready == [event]} {os.eventfd_read(event)} {timer >= 0} {seen}"


def connections():
    """One to itself over loopback, and one from outside once somebody connects to port 9000."""
    server = socket.create_server(("0.0.0.0", 9000))
    client = socket.create_connection(("127.0.0.1", 9000))
    accepted, _ = server.accept()
    server.setblocking(False)
    outside = None
    while True:
        try:
            outside = outside or server.accept()[0]
        except BlockingIOError:
            pass
        yield f"inside: {_talk(accepted, client)}, outside: {_listen(outside)}"


def _talk(sender, receiver):
    receiver.settimeout(5)
    try:
        sender.sendall(b"x")
        return "open" if receiver.recv(1) else "closed"
    except OSError:
        return "closed"


def _listen(connection):
    if connection is None:
        return "none"
    connection.setblocking(False)
    try:
        return "open" if connection.recv(1) else "closed"
    except BlockingIOError:
        return "open"
    except OSError:
        return "closed"


def no_io_uring():
    libc = ctypes.CDLL(None, use_errno=True)
    while True:
        results = []
        for number in (425, 426, 427, 323):
            libc.syscall(number, 1, 0)
            results.append(os.strerror(ctypes.get_errno()))
        yield str(sorted(set(results)))


def tiles():
    """Leave to use AMX's tiles, which is no part of what CRIU keeps. Other processors have none."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall(158, 0x1023, 18)  # arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA)
    while True:
        allowed = ctypes.c_uint64()
        libc.syscall(158, 0x1022, ctypes.byref(allowed))  # ARCH_GET_XCOMP_PERM
        yield f"tiles {allowed.value >> 18 & 1}"


def identity():
    """Namespaces, host name and environment, as a process inside sees them."""
    while True:
        first = sorted(os.listdir("/proc"))[0]
        yield f"{os.getpid()} {socket.gethostname()} {os.environ.get('COLOUR')} {first}"


def main():
    state = globals()[sys.argv[1]]()
    next(state)
    server = socket.create_server(("0.0.0.0", 8000))
    print("holding", flush=True)
    while True:
        connection, _ = server.accept()
        connection.sendall(next(state).encode())
        connection.close()


main()
