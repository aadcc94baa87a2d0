// A libnvidia-ml.so.1 for the machine of machine.h: what Glowplug's inventory asks through nvidia-ml-py.
// Names and numbers are those of nvml.h (https://docs.nvidia.com/deploy/nvml-api/).

#include "machine.h"

namespace {

enum Return {
    SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9,
    GPU_IS_LOST = 15,
};
constexpr uint32_t kRecoveryAction = 230;

struct Memory { unsigned long long total, free, used; };
struct ProcessInfo {
    unsigned pid;
    unsigned long long used_bytes;
    unsigned gpu_instance, compute_instance;
};
struct FieldValue {
    uint32_t field, scope;
    int64_t timestamp, latency_us;
    uint32_t type, result;
    uint64_t value;
};

// A handle is a device's number and one more, so that none is null.
int number_of(void *handle) { return static_cast<int>(reinterpret_cast<intptr_t>(handle)) - 1; }

// What health/NUMBER says after `word`; `otherwise` if nothing.
unsigned health(int device, const std::string &word, unsigned otherwise) {
    std::ifstream file(fake::folder() / "health" / std::to_string(device));
    std::string name;
    unsigned value;
    while (file >> name >> value)
        if (name == word) return value;
    return otherwise;
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT Return nvmlInitWithFlags(unsigned) {
    try {
        fake::shared();
    } catch (const std::runtime_error &) {
        return DRIVER_NOT_LOADED;
    }
    return SUCCESS;
}

EXPORT Return nvmlShutdown() { return SUCCESS; }

EXPORT const char *nvmlErrorString(Return) { return "a fault of the fake"; }

EXPORT Return nvmlSystemGetDriverVersion(char *text, unsigned length) {
    snprintf(text, length, "%s", fake::shared()->driver_version);
    return SUCCESS;
}

EXPORT Return nvmlSystemGetCudaDriverVersion_v2(int *version) {
    *version = fake::shared()->cuda_version;
    return SUCCESS;
}

EXPORT Return nvmlDeviceGetCount_v2(unsigned *count) {
    *count = fake::shared()->devices;
    return SUCCESS;
}

EXPORT Return nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    if (index >= static_cast<unsigned>(fake::shared()->devices)) return INVALID_ARGUMENT;
    if (health(index, "lost", 0)) return GPU_IS_LOST;
    *handle = reinterpret_cast<void *>(static_cast<intptr_t>(index) + 1);
    return SUCCESS;
}

EXPORT Return nvmlDeviceGetName(void *handle, char *text, unsigned length) {
    snprintf(text, length, "%s", fake::shared()->device[number_of(handle)].chip);
    return SUCCESS;
}

EXPORT Return nvmlDeviceGetUUID(void *handle, char *text, unsigned length) {
    snprintf(text, length, "%s", fake::uuid_text(fake::shared()->device[number_of(handle)].uuid).c_str());
    return SUCCESS;
}

EXPORT Return nvmlDeviceGetMemoryInfo(void *handle, Memory *memory) {
    fake::Locked locked;
    memory->total = locked->device[number_of(handle)].bytes;
    memory->used = fake::held_bytes(locked, number_of(handle));
    memory->free = memory->total - memory->used;
    return SUCCESS;
}

// Pids are those of whoever asks, which is somebody outside of every container.
EXPORT Return nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, ProcessInfo *found) {
    fake::Locked locked;
    const auto contained = fake::contained();
    unsigned number = 0;
    for (const fake::Process &process : locked->process) {
        const uint64_t bytes = process.is_taken ? process.held_bytes[number_of(handle)] : 0;
        if (bytes == 0) continue;
        const int seen = fake::pid_of(process.who, contained);
        const int pid = seen ? seen : process.who.pid;
        if (number < *count) found[number] = {static_cast<unsigned>(pid), bytes, 0, 0};
        number++;
    }
    const bool is_enough = number <= *count;
    *count = number;
    return is_enough ? SUCCESS : INSUFFICIENT_SIZE;
}

EXPORT Return nvmlDeviceGetPersistenceMode(void *handle, unsigned *mode) {
    *mode = health(number_of(handle), "persistence", 1);
    return SUCCESS;
}

EXPORT Return nvmlDeviceGetMigMode(void *handle, unsigned *now, unsigned *pending) {
    *now = *pending = health(number_of(handle), "mig", 0);
    return SUCCESS;
}

EXPORT Return nvmlDeviceGetFieldValues(void *handle, int count, FieldValue *values) {
    for (int i = 0; i < count; i++) {
        values[i].result = values[i].field == kRecoveryAction ? SUCCESS : NOT_SUPPORTED;
        values[i].value = health(number_of(handle), "recovery", 0);
    }
    return SUCCESS;
}
