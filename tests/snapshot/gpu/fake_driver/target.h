// The process that is suspended and resumed: its device memory, and the state machine of its checkpoints.
//
// "API" below is the CUDA Driver API, section "CUDA Checkpointing"
// (https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__CHECKPOINT.html, 13.4); "README" is
// https://github.com/NVIDIA/cuda-checkpoint. What neither says is marked "assumed".
//
// Device memory is files in $FAKE_GPU_DIR/memory, mapped by the process that allocated them. A checkpoint
// copies it to memory of that process and deletes the files; a restore makes new ones at the same addresses.
// As in the real driver a thread of the target does the work: who calls only asks it.
//
// CRIU. A process that was checkpointed may be saved and come back as another one, on another machine: then the
// table in shared memory does not know it, and what it believes to be its place there may be somebody else's.
// Its thread notices that it is not who it was, and enters itself again; what it has to know for that lies in
// its own memory. (How the real driver finds such a process is not documented; that it does is its purpose.)

#pragma once

#include <linux/futex.h>
#include <signal.h>
#include <sys/syscall.h>

#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "machine.h"

namespace {

using fake::Locked, fake::Process, fake::kDevices;

// Numbers of cuda.h.
enum Result {
    SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100,
    INVALID_DEVICE = 101, INVALID_CONTEXT = 201, ILLEGAL_STATE = 401, NOT_FOUND = 500, NOT_READY = 600,
    NOT_SUPPORTED = 801, UNKNOWN = 999,
};
enum State { RUNNING = 0, LOCKED = 1, CHECKPOINTED = 2, FAILED = 3 };
enum Call { LOCK = 1, CHECKPOINT, RESTORE, UNLOCK };
const char *const kCallNames[] = {"", "lock", "checkpoint", "restore", "unlock"};
const char *const kThreadName = "cuda-restore";
constexpr int kLookMs = 50;  // how often the thread looks whether it is still who it was

struct Uuid { unsigned char bytes[16]; };
struct LockArgs { unsigned timeout_ms, reserved0; uint64_t reserved1[7]; };
struct CheckpointArgs { void *custom_storage; char reserved[56]; };
struct GpuPair { Uuid before, after; };
struct RestoreArgs { GpuPair *pairs; unsigned count, padding; void *custom_storage; char reserved[40]; };

struct Allocation {
    void *address, *host;  // host: the contents, while checkpointed
    size_t bytes;
    int device;
    std::string file;
};

// What this process does on the devices. `gate` is API: "LOCKED: CUDA API locks are taken so further CUDA API
// calls will block"; memory, being host memory here, is touched inside calls only.
std::mutex gate;
std::condition_variable gate_moved;
bool gate_is_shut = false;
int calls_under_way = 0;
std::vector<Allocation> allocations;
int allocations_made = 0;
Process *self = nullptr;
fake::Identity registered_as;
int known_state = RUNNING;
fake::Device known_device[kDevices];  // those of the machine that the allocations' numbers refer to
int known_devices = 0;
std::vector<int> visible;  // what a program counts, by number when it began
int placed[kDevices];      // where each of those is now, after a restore by a map
std::atomic<int> entered = 0;  // -1: the table is full
bool is_initialised = false;
thread_local int current_device = -1;

class ApiCall {
  public:
    ApiCall() {
        std::unique_lock lock(gate);
        gate_moved.wait(lock, [] { return !gate_is_shut; });
        calls_under_way++;
    }
    ~ApiCall() {
        std::lock_guard lock(gate);
        calls_under_way--;
        gate_moved.notify_all();
    }
};

void futex_wait(std::atomic<uint32_t> &word, uint32_t seen, int milliseconds) {
    timespec limit{milliseconds / 1000, (milliseconds % 1000) * 1000000L};
    syscall(SYS_futex, &word, FUTEX_WAIT, seen, &limit, nullptr, 0);
}

void futex_wake(std::atomic<uint32_t> &word) {
    syscall(SYS_futex, &word, FUTEX_WAKE, 1 << 20, nullptr, nullptr, 0);
}

void set_state(int state) {
    known_state = state;
    self->state = state;
}

// Take a free place in the table; whether there was one.
bool enter(int state) {
    Locked locked;
    for (Process &process : locked->process)
        if (!process.is_taken) {
            self = &process;
            registered_as = fake::identity_of("self");
            process.who = registered_as;
            set_state(state);
            process.is_taken = true;
            return true;
        }
    return false;
}

void learn_devices(const Locked &locked) {
    known_devices = locked->devices;
    memcpy(known_device, locked->device, sizeof known_device);
}

// CUDA_VISIBLE_DEVICES names devices by UUID or number, in the order in which a program counts them.
void see_devices(const Locked &locked) {
    learn_devices(locked);
    visible.clear();
    for (int device = 0; device < known_devices; device++) placed[device] = device;
    const char *named = getenv("CUDA_VISIBLE_DEVICES");
    if (named == nullptr) {
        for (int device = 0; device < known_devices; device++) visible.push_back(device);
        return;
    }
    std::istringstream names(named);
    for (std::string name; std::getline(names, name, ',');) {
        int found = -1;
        for (int device = 0; device < known_devices; device++)
            if (name == fake::uuid_text(known_device[device].uuid) || name == std::to_string(device))
                found = device;
        if (found < 0) return;  // as the real one: what comes after a name that is none does not count
        visible.push_back(found);
    }
}

// --- device memory ---------------------------------------------------------------------------------------

Result take(const Locked &locked, Process &process, int device, size_t bytes) {
    if (fake::held_bytes(locked, device) + bytes > locked->device[device].bytes) return OUT_OF_MEMORY;
    process.held_bytes[device] += bytes;
    return SUCCESS;
}

// A file of device memory, mapped at `address` (anywhere if null). Its name begins with the place in the table.
void *map_device(Allocation &allocation, void *address) {
    char name[96];
    snprintf(name, sizeof name, "%d.%lu.%d-%d", static_cast<int>(self - fake::shared()->process),
             registered_as.pid_namespace, registered_as.pid, allocations_made++);
    allocation.file = fake::folder() / "memory" / name;
    int fd = open(allocation.file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (ftruncate(fd, allocation.bytes) != 0) abort();
    int flags = MAP_SHARED | (address ? MAP_FIXED : 0);
    void *mapped = mmap(address, allocation.bytes, PROT_READ | PROT_WRITE, flags, fd, 0);
    close(fd);
    return mapped;
}

// README: "device memory is copied to the host, into allocations managed by the CUDA driver; and all of
// CUDA's GPU resources are released". The address stays reserved: on resume "GPU memory mappings are restored
// at their original addresses".
void move_to_host() {
    Locked locked;
    for (Allocation &a : allocations) {
        a.host = mmap(nullptr, a.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        memcpy(a.host, a.address, a.bytes);
        mmap(a.address, a.bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
        unlink(a.file.c_str());
    }
    memset(self->held_bytes, 0, sizeof self->held_bytes);
}

// The number, on this machine, of the device with this UUID; -1 if there is none.
int numbered(const Locked &locked, const unsigned char *uuid) {
    for (int device = 0; device < locked->devices; device++)
        if (memcmp(uuid, locked->device[device].uuid, 16) == 0) return device;
    return -1;
}

// Which device each old one becomes, by number; -1: not said, or not there. Without a map: itself.
int mapped_device(const Locked &locked, int before) {
    const fake::Order &order = self->order;
    if (order.pairs == 0) return numbered(locked, known_device[before].uuid);
    for (unsigned i = 0; i < order.pairs; i++)
        if (memcmp(order.old_uuid[i], known_device[before].uuid, 16) == 0)
            return numbered(locked, order.new_uuid[i]);
    return -1;
}

Result move_to_devices(const Locked &locked) {
    int target[kDevices];
    for (int device = 0; device < known_devices; device++) {
        target[device] = mapped_device(locked, device);
        // API: "If an array of GPU UUID pairs is specified, it must contain every checkpointed GPU". Assumed:
        // each that was in the machine, used or not.
        if (target[device] < 0) return INVALID_VALUE;
        // API: "The GPU to restore onto needs to have enough memory and be of the same chip type as the old
        // GPU". Assumed: INVALID_VALUE for another chip, OUT_OF_MEMORY for too little, and the state stays.
        if (strcmp(known_device[device].chip, locked->device[target[device]].chip) != 0) return INVALID_VALUE;
    }
    uint64_t wanted[kDevices] = {};
    for (Allocation &a : allocations) wanted[target[a.device]] += a.bytes;
    for (int device = 0; device < locked->devices; device++)
        if (fake::held_bytes(locked, device) + wanted[device] > locked->device[device].bytes)
            return OUT_OF_MEMORY;
    for (Allocation &a : allocations) {
        a.device = target[a.device];
        take(locked, *self, a.device, a.bytes);
        map_device(a, a.address);
        memcpy(a.address, a.host, a.bytes);
        munmap(a.host, a.bytes);
        a.host = nullptr;
    }
    for (int &device : placed) device = target[device];
    learn_devices(locked);
    return SUCCESS;
}

// --- the state machine -------------------------------------------------------------------------------------

// API: "block further CUDA API calls"; README: "already-submitted CUDA work .. [is] completed". API: "If
// timeoutMs is specified and the timeout is reached the process will be left in the RUNNING state", and
// NOT_READY is returned.
Result lock_api(uint32_t timeout_ms) {
    std::unique_lock lock(gate);
    gate_is_shut = true;
    auto is_idle = [] { return calls_under_way == 0; };
    if (timeout_ms == 0) {
        gate_moved.wait(lock, is_idle);
    } else if (!gate_moved.wait_for(lock, std::chrono::milliseconds(timeout_ms), is_idle)) {
        gate_is_shut = false;
        gate_moved.notify_all();
        return NOT_READY;
    }
    return SUCCESS;
}

void unlock_api() {
    std::lock_guard lock(gate);
    gate_is_shut = false;
    gate_moved.notify_all();
}

Result carry_out(int call) {
    // API: lock wants "RUNNING", checkpoint "LOCKED", restore "CHECKPOINTED", unlock "LOCKED"; else
    // ILLEGAL_STATE. A FAILED process "entered an uncorrectable error": no call is legal any more.
    const int wanted[] = {-1, RUNNING, LOCKED, CHECKPOINTED, LOCKED};
    if (self->state != wanted[call]) return ILLEGAL_STATE;
    Result result = SUCCESS;
    if (call == LOCK) {
        result = lock_api(self->order.timeout_ms);
        if (result == SUCCESS) set_state(LOCKED);  // API: "will be in the LOCKED state"
    } else if (call == CHECKPOINT) {
        move_to_host();
        set_state(CHECKPOINTED);  // API: "the target process will be in the CHECKPOINTED state"
    } else if (call == RESTORE) {
        result = move_to_devices(Locked());
        if (result == SUCCESS) set_state(LOCKED);  // API: "will be in the CU_PROCESS_STATE_LOCKED state"
    } else {
        set_state(RUNNING);  // API: "Upon successful return the process will be in the RUNNING state"
        unlock_api();
    }
    return result;
}

// The restore thread: it does what other processes ask.
void serve() {
    pthread_setname_np(pthread_self(), kThreadName);
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, nullptr);
    entered = enter(RUNNING) ? 1 : -1;
    if (entered < 0) return;
    for (;;) {
        if (!fake::is_same(fake::identity_of("self"), registered_as))  // CRIU restored it
            if (!enter(known_state == CHECKPOINTED ? CHECKPOINTED : FAILED)) return;
        fake::Order &order = self->order;
        uint32_t asked = order.asked;
        if (asked == order.done) {
            futex_wait(order.asked, asked, kLookMs);
            continue;
        }
        const int call = order.call;
        usleep(order.delay_ms * 1000);
        order.result = carry_out(call);
        order.done = asked;
        futex_wake(order.done);
    }
}

}  // namespace
