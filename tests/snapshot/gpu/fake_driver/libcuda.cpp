// A libcuda.so.1 for machines without a GPU: what `cuda.bindings.driver` needs of the driver to allocate
// device memory, and the checkpoint calls with their real rules, which are in target.h.
//
// Faults: a file $FAKE_GPU_DIR/faults/CALL.NAME that holds "ACTION PID" (PID 0: any) strikes the next such
// call once, or always when NAME begins with "always"; CALL_done strikes when the call has been made. For the
// actions see `strike`.

#include "target.h"

namespace {

constexpr uint32_t kLateMs = 1500;  // how late a call is made whose caller died while asking
constexpr std::chrono::seconds kEntering{5};

void log_call(const char *call, int pid, const char *result) {
    char line[128];
    int length = snprintf(line, sizeof line, "%d %s %d %s\n", getpid(), call, pid, result);
    int fd = open((fake::folder() / "calls").c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (write(fd, line, length) != length) abort();
    close(fd);
}

// The fault for this call, "" if there is none; one that strikes once is used up.
std::string fault_of(const std::string &call, int pid) {
    std::error_code ignored;
    for (const auto &file : std::filesystem::directory_iterator(fake::folder() / "faults", ignored)) {
        const std::string name = file.path().filename();
        if (!name.starts_with(call + ".")) continue;
        std::ifstream content(file.path());
        std::string action;
        int victim = 0;
        content >> action >> victim;
        if (action.empty() || (victim && victim != pid)) continue;
        if (name.starts_with(call + ".always") || unlink(file.path().c_str()) == 0) return action;
    }
    return "";
}

[[noreturn]] void hang() {
    for (;;) pause();
}

// What is to happen instead of the call, or before it; -1: the call itself.
int strike(const std::string &fault, Process *process, int pid) {
    if (fault == "timeout") return NOT_READY;
    if (fault == "illegal_state") return ILLEGAL_STATE;
    if (fault == "out_of_memory") return OUT_OF_MEMORY;
    if (fault == "wrong_chip") return INVALID_VALUE;
    if (fault == "failed") {
        process->state = FAILED;
        return UNKNOWN;
    }
    if (fault == "hang") hang();
    if (fault == "hold")  // until the test takes the file away
        while (access((fake::folder() / "hold").c_str(), F_OK) == 0) usleep(1000);
    if (fault == "caller_dies") kill(getpid(), SIGKILL);
    if (fault == "target_dies") {
        kill(pid, SIGKILL);
        while (fake::start_ticks(std::to_string(pid)) != 0) usleep(1000);
    }
    return -1;
}

bool has_restore_thread(int pid) {
    std::error_code ignored;
    const std::string tasks = "/proc/" + std::to_string(pid) + "/task";
    for (const auto &task : std::filesystem::directory_iterator(tasks, ignored)) {
        std::ifstream file(task.path() / "comm");
        if (std::string name; file >> name && name == kThreadName) return true;
    }
    return false;
}

// The process with this pid here. One that CRIU has just restored is waited for until it is in the table again.
Process *process_of(int pid) {
    const fake::Identity wanted = fake::identity_of(std::to_string(pid));
    if (wanted.start_ticks == 0) return nullptr;
    const auto until = std::chrono::steady_clock::now() + kEntering;
    for (;;) {
        {
            Locked locked;
            for (Process &process : locked->process)
                if (process.is_taken && fake::is_same(process.who, wanted)) return &process;
        }
        if (!has_restore_thread(pid) || std::chrono::steady_clock::now() > until) return nullptr;
        usleep(1000);
    }
}

// Have the target's thread do it. One order at a time, and INVALID_VALUE for a target that dies meanwhile.
Result order(Process *process, int pid, int call, uint32_t timeout_ms, const RestoreArgs *restore,
             bool dies_asking) {
    static std::mutex one_at_a_time[fake::kProcesses];
    std::lock_guard lock(one_at_a_time[process - fake::shared()->process]);
    fake::Order &order = process->order;
    const fake::Identity who = process->who;
    order.call = call;
    order.timeout_ms = timeout_ms;
    order.delay_ms = dies_asking ? kLateMs : 0;
    order.pairs = restore ? restore->count : 0;
    for (unsigned i = 0; i < order.pairs; i++) {
        memcpy(order.old_uuid[i], restore->pairs[i].before.bytes, 16);
        memcpy(order.new_uuid[i], restore->pairs[i].after.bytes, 16);
    }
    const uint32_t asked = ++order.asked;
    futex_wake(order.asked);
    if (dies_asking) kill(getpid(), SIGKILL);
    while (order.done != asked) {
        if (!fake::is_same(process->who, who) || !fake::is_same(fake::identity_of(std::to_string(pid)), who))
            return INVALID_VALUE;
        futex_wait(order.done, order.done, 20);
    }
    return static_cast<Result>(order.result);
}

const char *name_of(int result) {
    switch (result) {
        case SUCCESS: return "CUDA_SUCCESS";
        case INVALID_VALUE: return "CUDA_ERROR_INVALID_VALUE";
        case OUT_OF_MEMORY: return "CUDA_ERROR_OUT_OF_MEMORY";
        case NOT_INITIALIZED: return "CUDA_ERROR_NOT_INITIALIZED";
        case NO_DEVICE: return "CUDA_ERROR_NO_DEVICE";
        case INVALID_DEVICE: return "CUDA_ERROR_INVALID_DEVICE";
        case INVALID_CONTEXT: return "CUDA_ERROR_INVALID_CONTEXT";
        case ILLEGAL_STATE: return "CUDA_ERROR_ILLEGAL_STATE";
        case NOT_FOUND: return "CUDA_ERROR_NOT_FOUND";
        case NOT_READY: return "CUDA_ERROR_NOT_READY";
        case NOT_SUPPORTED: return "CUDA_ERROR_NOT_SUPPORTED";
        default: return "CUDA_ERROR_UNKNOWN";
    }
}

Result checkpoint_call(int pid, int call, uint32_t timeout_ms = 0, const RestoreArgs *restore = nullptr) {
    Process *process = process_of(pid);
    if (process == nullptr) return INVALID_VALUE;  // no CUDA process: assumed, CRIU's plugin relies on it
    const std::string name = kCallNames[call];
    const std::string fault = fault_of(name, pid);
    int result = strike(fault, process, pid);
    if (result < 0) result = order(process, pid, call, timeout_ms, restore, fault == "caller_dies_asking");
    log_call(name.c_str(), pid, name_of(result));
    strike(fault_of(name + "_done", pid), process, pid);  // done, and the caller never learns of it
    return static_cast<Result>(result);
}

Result usable() { return is_initialised ? SUCCESS : NOT_INITIALIZED; }

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT Result cuInit(unsigned flags) {
    if (flags != 0) return INVALID_VALUE;
    static std::mutex once;
    std::lock_guard lock(once);
    if (is_initialised) return SUCCESS;
    try {
        Locked locked;
        see_devices(locked);
    } catch (const std::runtime_error &) {
        return NO_DEVICE;
    }
    if (visible.empty()) return NO_DEVICE;
    std::thread(serve).detach();
    while (entered == 0) usleep(100);
    if (entered < 0) return OUT_OF_MEMORY;
    log_call("init", getpid(), "CUDA_SUCCESS");
    if (write(1, "fake CUDA driver\n", 17) < 0) abort();  // whose stdout it is must not matter
    is_initialised = true;
    return SUCCESS;
}

EXPORT Result cuDriverGetVersion(int *version) {
    try {
        *version = fake::shared()->cuda_version;
    } catch (const std::runtime_error &) {
        *version = 0;
    }
    return SUCCESS;
}

EXPORT Result cuDeviceGetCount(int *count) {
    *count = visible.size();
    return usable();
}

EXPORT Result cuDeviceGet(int *device, int ordinal) {
    if (!is_initialised) return NOT_INITIALIZED;
    if (ordinal < 0 || ordinal >= static_cast<int>(visible.size())) return INVALID_DEVICE;
    *device = visible[ordinal];
    return SUCCESS;
}

EXPORT Result cuDeviceGetUuid_v2(Uuid *uuid, int device) {
    if (!is_initialised) return NOT_INITIALIZED;
    memcpy(uuid->bytes, known_device[placed[device]].uuid, 16);
    return SUCCESS;
}

// A context is a device's number and one more, so that none is null.
EXPORT Result cuDevicePrimaryCtxRetain(void **context, int device) {
    if (!is_initialised) return NOT_INITIALIZED;
    *context = reinterpret_cast<void *>(static_cast<intptr_t>(device) + 1);
    return SUCCESS;
}

EXPORT Result cuCtxSetCurrent(void *context) {
    current_device = static_cast<int>(reinterpret_cast<intptr_t>(context)) - 1;
    return usable();
}

EXPORT Result cuMemAlloc_v2(uint64_t *address, size_t bytes) {
    ApiCall call;
    if (current_device < 0) return INVALID_CONTEXT;
    if (bytes == 0) return INVALID_VALUE;
    const int device = placed[current_device];
    if (Result result = take(Locked(), *self, device, bytes)) return result;
    Allocation allocation{nullptr, nullptr, bytes, device, ""};
    allocation.address = map_device(allocation, nullptr);
    *address = reinterpret_cast<uint64_t>(allocation.address);
    std::lock_guard lock(gate);
    allocations.push_back(allocation);
    return SUCCESS;
}

EXPORT Result cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t bytes) {
    ApiCall call;
    memcpy(reinterpret_cast<void *>(to), from, bytes);
    return usable();
}

EXPORT Result cuMemcpyDtoH_v2(void *to, uint64_t from, size_t bytes) {
    ApiCall call;
    memcpy(to, reinterpret_cast<const void *>(from), bytes);
    return usable();
}

EXPORT Result cuGetErrorName(int result, const char **name) {
    *name = name_of(result);
    return SUCCESS;
}

EXPORT Result cuGetErrorString(int result, const char **text) { return cuGetErrorName(result, text); }

EXPORT Result cuCheckpointProcessGetState(int pid, int *state) {
    if (strike(fault_of("state", pid), nullptr, pid) >= 0) return UNKNOWN;
    Process *process = process_of(pid);
    if (process == nullptr) return INVALID_VALUE;
    *state = process->state;
    return SUCCESS;
}

EXPORT Result cuCheckpointProcessLock(int pid, LockArgs *args) {
    return checkpoint_call(pid, LOCK, args ? args->timeout_ms : 0);
}

EXPORT Result cuCheckpointProcessCheckpoint(int pid, CheckpointArgs *args) {
    return args && args->custom_storage ? NOT_SUPPORTED : checkpoint_call(pid, CHECKPOINT);
}

EXPORT Result cuCheckpointProcessRestore(int pid, RestoreArgs *args) {
    if (args && (args->custom_storage || args->count > kDevices)) return NOT_SUPPORTED;
    // API: "CUDA process restore requires persistence mode to be enabled or cuInit to have been called".
    if (!is_initialised) return NOT_INITIALIZED;
    return checkpoint_call(pid, RESTORE, 0, args);
}

EXPORT Result cuCheckpointProcessUnlock(int pid, void *) { return checkpoint_call(pid, UNLOCK); }

// How the bindings find every function; those that are not here they take for those of a newer driver.
EXPORT Result cuGetProcAddress_v2(const char *symbol, void **function, int, uint64_t, int *status) {
    static const struct { const char *name; void *function; } kTable[] = {
#define ENTRY(name, function) {#name, reinterpret_cast<void *>(function)}
        ENTRY(cuInit, cuInit), ENTRY(cuDriverGetVersion, cuDriverGetVersion),
        ENTRY(cuDeviceGetCount, cuDeviceGetCount),
        ENTRY(cuDeviceGet, cuDeviceGet), ENTRY(cuDeviceGetUuid, cuDeviceGetUuid_v2),
        ENTRY(cuDevicePrimaryCtxRetain, cuDevicePrimaryCtxRetain), ENTRY(cuCtxSetCurrent, cuCtxSetCurrent),
        ENTRY(cuMemAlloc, cuMemAlloc_v2), ENTRY(cuMemcpyHtoD, cuMemcpyHtoD_v2),
        ENTRY(cuMemcpyDtoH, cuMemcpyDtoH_v2),
        ENTRY(cuGetErrorName, cuGetErrorName), ENTRY(cuGetErrorString, cuGetErrorString),
        ENTRY(cuCheckpointProcessGetState, cuCheckpointProcessGetState),
        ENTRY(cuCheckpointProcessLock, cuCheckpointProcessLock),
        ENTRY(cuCheckpointProcessCheckpoint, cuCheckpointProcessCheckpoint),
        ENTRY(cuCheckpointProcessRestore, cuCheckpointProcessRestore),
        ENTRY(cuCheckpointProcessUnlock, cuCheckpointProcessUnlock),
        ENTRY(cuGetProcAddress, cuGetProcAddress_v2),
    };
    std::string wanted(symbol);
    if (wanted.ends_with("_v2")) wanted.resize(wanted.size() - 3);
    for (const auto &entry : kTable)
        if (wanted == entry.name) {
            *function = entry.function;
            if (status) *status = 0;
            return SUCCESS;
        }
    *function = nullptr;
    if (status) *status = 1;
    return NOT_FOUND;
}
