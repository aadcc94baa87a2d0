// A folder over HTTP with the manners of a distant store: latency before each answer, a limited rate for each
// connection. In C because it shares its cores with what is measured: sendfile, a thread per connection, and
// sleep. GET and HEAD with one range, kept connections; for the benchmark only, on the loopback.
//
//   delayed_server FOLDER LATENCY_MS MEGABYTES_PER_S     (prints its port; a rate of 0 is no limit)
//
// What was asked is counted, and told at /.counts as "requests bytes".

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/prctl.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { HEAD_BYTES = 16384, PIECE_BYTES = 128 << 10, PATH_BYTES = 4096 };

static int root;
static double latency_s, bytes_per_s;
static atomic_llong requests, sent_bytes;

static double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void sleep_until(double when_s) {
    struct timespec then = {.tv_sec = (time_t)when_s, .tv_nsec = (long)((when_s - (double)(time_t)when_s) * 1e9)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &then, NULL) == EINTR) {
    }
}

static int send_all(int connection, const char *data, size_t size) {
    while (size > 0) {
        ssize_t sent = send(connection, data, size, MSG_NOSIGNAL);
        if (sent <= 0) return -1;
        data += sent;
        size -= (size_t)sent;
    }
    return 0;
}

static int send_text(int connection, const char *status, const char *body) {
    char answer[512];
    int size = snprintf(answer, sizeof answer, "HTTP/1.1 %s\r\nContent-Length: %zu\r\n\r\n%s", status, strlen(body), body);
    return send_all(connection, answer, (size_t)size);
}

// The path of a request's target: percent signs decoded, a query cut off, no "..".
static int decode(const char *target, size_t size, char *path) {
    size_t written = 0;
    for (size_t at = 0; at < size && target[at] != '?'; at++) {
        if (written + 1 >= PATH_BYTES) return -1;
        unsigned value;
        if (target[at] == '%' && at + 2 < size && sscanf(target + at + 1, "%2x", &value) == 1) {
            path[written++] = (char)value;
            at += 2;
        } else {
            path[written++] = target[at];
        }
    }
    path[written] = 0;
    return strstr(path, "/../") != NULL || path[0] != '/' ? -1 : 0;
}

// Send a part of a file no faster than the rate allows.
static int send_part(int connection, int file, off_t start, off_t end) {
    double began_s = now_s();
    off_t at = start;
    while (at < end) {
        size_t piece = end - at < PIECE_BYTES ? (size_t)(end - at) : PIECE_BYTES;
        ssize_t sent = sendfile(connection, file, &at, piece);
        if (sent <= 0) return -1;
        atomic_fetch_add(&sent_bytes, sent);
        if (bytes_per_s > 0) sleep_until(began_s + (double)(at - start) / bytes_per_s);
    }
    return 0;
}

static int answer(int connection, const char *head) {
    sleep_until(now_s() + latency_s);
    const char *target = strchr(head, ' ');
    const char *target_end = target ? strchr(target + 1, ' ') : NULL;
    char path[PATH_BYTES];
    if (!target_end || decode(target + 1, (size_t)(target_end - target - 1), path) < 0)
        return send_text(connection, "400 Bad Request", "");
    if (strcmp(path, "/.counts") == 0) {
        char counts[80];
        snprintf(counts, sizeof counts, "%lld %lld", atomic_load(&requests), atomic_load(&sent_bytes));
        return send_text(connection, "200 OK", counts);
    }
    atomic_fetch_add(&requests, 1);
    struct stat found;
    int file = openat(root, path + 1, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (file < 0 || fstat(file, &found) < 0 || !S_ISREG(found.st_mode)) {
        if (file >= 0) close(file);
        return send_text(connection, "404 Not Found", "");
    }
    long long start = 0, end = found.st_size;
    const char *range = strcasestr(head, "\r\nRange: bytes=");
    if (range) {
        long long last = end - 1;
        int numbers = sscanf(range + 15, "%lld-%lld", &start, &last);
        if (numbers < 1 || start < 0 || start >= end || last < start) {
            close(file);
            return send_text(connection, "416 Range Not Satisfiable", "");
        }
        if (last + 1 < end) end = last + 1;
    }
    char answer_head[512];
    int size;
    if (range)
        size = snprintf(answer_head, sizeof answer_head,
                        "HTTP/1.1 206 Partial Content\r\nContent-Length: %lld\r\nContent-Range: bytes %lld-%lld/%lld\r\n"
                        "Accept-Ranges: bytes\r\n\r\n",
                        end - start, start, end - 1, (long long)found.st_size);
    else
        size = snprintf(answer_head, sizeof answer_head, "HTTP/1.1 200 OK\r\nContent-Length: %lld\r\nAccept-Ranges: bytes\r\n\r\n", end);
    int outcome = send_all(connection, answer_head, (size_t)size);
    if (outcome == 0 && strncmp(head, "HEAD ", 5) != 0) outcome = send_part(connection, file, start, end);
    close(file);
    return outcome;
}

static void *converse(void *argument) {
    int connection = (int)(long)argument;
    int yes = 1;
    setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    char head[HEAD_BYTES + 1];
    size_t filled = 0;
    for (;;) {
        head[filled] = 0;
        char *end = strstr(head, "\r\n\r\n");
        if (!end) {
            ssize_t got = filled < HEAD_BYTES ? recv(connection, head + filled, HEAD_BYTES - filled, 0) : 0;
            if (got <= 0) break;
            filled += (size_t)got;
            continue;
        }
        end[2] = 0;
        if (answer(connection, head) < 0) break;
        size_t used = (size_t)(end + 4 - head);
        memmove(head, head + used, filled - used);
        filled -= used;
    }
    close(connection);
    return NULL;
}

int main(int count, char **given) {
    if (count != 5) {
        fprintf(stderr, "usage: delayed_server FOLDER LATENCY_MS MEGABYTES_PER_S ADDRESS\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_PDEATHSIG, SIGKILL);  // a benchmark that was killed leaves no server behind
    root = open(given[1], O_PATH | O_DIRECTORY | O_CLOEXEC);
    latency_s = atof(given[2]) / 1e3;
    bytes_per_s = atof(given[3]) * 1e6;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = inet_addr(given[4])};
    socklen_t size = sizeof address;
    if (root < 0 || listener < 0 || bind(listener, (struct sockaddr *)&address, size) < 0 || listen(listener, 256) < 0) {
        perror("delayed_server");
        return 1;
    }
    getsockname(listener, (struct sockaddr *)&address, &size);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    pthread_attr_t detached;
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&detached, 256 << 10);
    for (;;) {
        int connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        pthread_t thread;
        if (connection >= 0 && pthread_create(&thread, &detached, converse, (void *)(long)connection) != 0) close(connection);
    }
}
