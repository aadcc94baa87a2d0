// What the fake libcuda.so.1 and the fake libnvidia-ml.so.1 know in common: the devices of a machine that
// does not exist, and which process holds how much of them. It lies in memory that all processes share, a
// file in $FAKE_GPU_DIR, so that one process can checkpoint another as with the real driver.
//
//   machine   written by the test: "driver 580.82.07 13000", then a line a device: "UUID BYTES CHIP NAME"
//   state     the shared memory
//   faults/   one file a fault (libcuda.cpp)
//   health/   one file a device, by its number: "recovery 1", "lost 1", "mig 1", "persistence 0"
//   memory/   device memory: one file an allocation, gone once it is checkpointed or its process is dead
//   calls     one line a checkpoint call: caller, call, target, result
//
// The folder may be shown in containers too. The real driver is in the kernel and knows every process; here a
// process is known by its pid namespace, its pid in there and when it was started (the same clock for all), and
// whoever is outside finds it by `NSpid` of proc(5).

#pragma once

#include <fcntl.h>
#include <pthread.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace fake {

constexpr int kDevices = 8, kProcesses = 64;
constexpr int64_t kTicksPerS = 100;  // USER_HZ, as proc(5) counts

struct Device {
    unsigned char uuid[16];
    char chip[64];
    uint64_t bytes;
};

// One very process, whoever asks. `pid` is its number in its own pid namespace, `start_ticks` on the clock of the
// machine: a copy that CRIU restored lives in a time namespace too, and sees its own start elsewhere.
struct Identity {
    uint64_t pid_namespace;
    int64_t start_ticks;
    int pid;
};

// A checkpoint call on its way from the caller to the thread of the target that carries it out.
struct Order {
    std::atomic<uint32_t> asked, done;  // futexes: how many orders there were
    int call, result;
    uint32_t timeout_ms, delay_ms, pairs;
    unsigned char old_uuid[kDevices][16], new_uuid[kDevices][16];
};

struct Process {
    bool is_taken;
    Identity who;
    std::atomic<int> state;  // CUprocessState
    uint64_t held_bytes[kDevices];
    Order order;
};

struct Shared {
    pthread_mutex_t mutex;
    uint64_t pid_namespace;  // of the machine: whoever is in it sees every process
    int devices, cuda_version;
    char driver_version[32];
    Device device[kDevices];
    Process process[kProcesses];
};

inline std::filesystem::path folder() {
    const char *named = getenv("FAKE_GPU_DIR");
    return named ? named : "/nonexistent";
}

// When a process was started, in clock ticks since boot; 0 if it is no more (a zombie is no more).
inline uint64_t start_ticks(const std::string &process) {
    std::ifstream file("/proc/" + process + "/stat");
    std::string line;
    if (!std::getline(file, line)) return 0;
    std::istringstream fields(line.substr(line.rfind(')') + 2));
    std::string field, state;
    fields >> state;
    if (state == "Z" || state == "X") return 0;
    for (int number = 4; number <= 22; number++) fields >> field;
    return std::stoull(field);
}

inline uint64_t pid_namespace(const std::string &process) {
    struct stat status;
    return stat(("/proc/" + process + "/ns/pid").c_str(), &status) == 0 ? status.st_ino : 0;
}


// By how much boot lies elsewhere for us than for the machine (time_namespaces(7)).
inline int64_t offset_ticks() {
    std::ifstream file("/proc/self/timens_offsets");
    std::string clock;
    int64_t seconds, nanoseconds;
    while (file >> clock >> seconds >> nanoseconds)
        if (clock == "boottime") return seconds * kTicksPerS + nanoseconds * kTicksPerS / 1'000'000'000;
    return 0;
}

// Who has this pid, seen from here: its number where it lives is the last of `NSpid`. No process: 0 ticks.
inline Identity identity_of(const std::string &process) {
    Identity who{pid_namespace(process), 0, 0};
    std::ifstream file("/proc/" + process + "/status");
    for (std::string line; std::getline(file, line);)
        if (line.starts_with("NSpid:")) who.pid = std::stoi(line.substr(line.find_last_of(" \t") + 1));
    if (const uint64_t ticks = start_ticks(process)) who.start_ticks = ticks - offset_ticks();
    return who;
}

inline bool is_same(const Identity &one, const Identity &other) {
    return one.pid_namespace == other.pid_namespace && one.pid == other.pid &&
           std::abs(one.start_ticks - other.start_ticks) <= 2;  // each clock is rounded by itself
}

// Every process that can be seen from here and lives in another pid namespace, and its pid here.
inline std::vector<std::pair<Identity, int>> contained() {
    std::vector<std::pair<Identity, int>> found;
    const uint64_t ours = pid_namespace("self");
    for (const auto &entry : std::filesystem::directory_iterator("/proc")) {
        const std::string name = entry.path().filename();
        if (name.find_first_not_of("0123456789") != std::string::npos) continue;
        const uint64_t theirs = pid_namespace(name);
        if (theirs == 0 || theirs == ours) continue;
        if (const Identity who = identity_of(name); who.start_ticks) found.emplace_back(who, std::stoi(name));
    }
    return found;
}

// The pid here of one of them, 0 if it is not among them.
inline int pid_of(const Identity &wanted, const std::vector<std::pair<Identity, int>> &among) {
    for (const auto &[who, pid] : among)
        if (is_same(who, wanted)) return pid;
    return 0;
}

inline void parse_uuid(const std::string &text, unsigned char *uuid) {
    std::string digits;
    for (char c : text.substr(4))  // after "GPU-"
        if (c != '-') digits += c;
    for (int i = 0; i < 16; i++) uuid[i] = std::stoul(digits.substr(2 * i, 2), nullptr, 16);
}

inline std::string uuid_text(const unsigned char *uuid) {
    std::string made = "GPU-";
    for (int i = 0; i < 16; i++) {
        char digits[4];
        snprintf(digits, sizeof digits, "%02x", uuid[i]);
        made += (i == 4 || i == 6 || i == 8 || i == 10) ? std::string("-") + digits : digits;
    }
    return made;
}

inline void describe(Shared *shared) {
    std::ifstream file(folder() / "machine");
    std::string word, uuid;
    file >> word >> shared->driver_version >> shared->cuda_version;
    Device *device = shared->device;
    while (file >> uuid >> device->bytes && std::getline(file >> std::ws, word)) {
        parse_uuid(uuid, device->uuid);
        snprintf(device->chip, sizeof device->chip, "%s", word.c_str());
        device++;
    }
    shared->devices = device - shared->device;
    shared->pid_namespace = pid_namespace("self");
}

// The shared memory; made by whoever comes first. Throws when there is no machine.
inline Shared *shared() {
    static Shared *mapped = [] {
        if (!std::filesystem::exists(folder() / "machine")) throw std::runtime_error("no machine");
        int fd = open((folder() / "state").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        flock(fd, LOCK_EX);
        struct stat status;
        fstat(fd, &status);
        bool is_new = status.st_size == 0;
        if (is_new && ftruncate(fd, sizeof(Shared)) != 0) throw std::runtime_error("no space");
        auto *memory =
            static_cast<Shared *>(mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
        if (is_new) {
            pthread_mutexattr_t attributes;
            pthread_mutexattr_init(&attributes);
            pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
            pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
            pthread_mutex_init(&memory->mutex, &attributes);
            describe(memory);
        }
        flock(fd, LOCK_UN);  // the mapping keeps the file open
        close(fd);
        return memory;
    }();
    return mapped;
}

// The table of processes is ours alone; what the dead held is free again.
class Locked {
  public:
    Locked() : shared_(shared()) {
        if (pthread_mutex_lock(&shared_->mutex) == EOWNERDEAD) pthread_mutex_consistent(&shared_->mutex);
        const uint64_t ours = pid_namespace("self");
        bool is_any_contained = false;
        for (Process &process : shared_->process) {
            if (!process.is_taken) continue;
            if (process.who.pid_namespace != ours)
                is_any_contained = true;
            else if (!is_same(identity_of(std::to_string(process.who.pid)), process.who))
                sweep(process);
        }
        if (!is_any_contained || ours != shared_->pid_namespace) return;  // the others are not seen from here
        const auto alive = contained();
        for (Process &process : shared_->process)
            if (process.is_taken && process.who.pid_namespace != ours && !pid_of(process.who, alive))
                sweep(process);
    }
    ~Locked() { pthread_mutex_unlock(&shared_->mutex); }
    Locked(const Locked &) = delete;
    Shared *operator->() const { return shared_; }

  private:
    void sweep(Process &process) {
        const std::string own = std::to_string(&process - shared_->process) + ".";
        for (const auto &file : std::filesystem::directory_iterator(folder() / "memory"))
            if (file.path().filename().string().starts_with(own)) std::filesystem::remove(file.path());
        memset(static_cast<void *>(&process), 0, sizeof process);
    }
    Shared *shared_;
};

inline uint64_t held_bytes(const Locked &locked, int device) {
    uint64_t sum = 0;
    for (const Process &process : locked->process) sum += process.is_taken ? process.held_bytes[device] : 0;
    return sum;
}

}  // namespace fake
