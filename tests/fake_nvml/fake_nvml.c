/* A libnvidia-ml.so.1 whose cards are described by a text file, so that tests run the real binding on any machine.
 *
 * FAKE_NVML_STATE names the file; it is read again with every call, so a change shows at once. Without it the library
 * behaves like an absent driver. One directive a line:
 *
 *   driver VERSION                       version of the driver
 *   gpu UUID TOTAL USED RESERVED NAME    begins a card; NAME runs to the end of the line; TOTAL may be na
 *   mig                                  the card is sliced
 *   slice UUID TOTAL USED RESERVED NAME  begins a slice of the last card
 *   process compute|graphics PID BYTES   one entry in a list of the last card or slice; BYTES may be na
 *   ledger DIRECTORY                     one file for each process, named by its pid and holding bytes; a file counts
 *                                        while its process lives, in the list and in USED of the last card or slice
 *   error CALL CODE                      CALL fails, on the last card or slice; before any card: everywhere
 *   hang CALL MILLISECONDS               CALL takes this long first; likewise
 *
 * CALL is init, count, handle, uuid, name, memory, memory_v2, compute, graphics, mig or any.
 */
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_DEVICES 32
#define MAX_PROCESSES 64
#define MAX_FAULTS 16
#define NAME_BYTES 96
#define NOT_AVAILABLE 0xffffffffffffffffULL

enum {
    SUCCESS = 0,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    LIBRARY_NOT_FOUND = 12,
    GPU_IS_LOST = 15,
    UNKNOWN = 999
};

typedef struct {
    char call[16];
    int code;
    int milliseconds;
} fault_t;

typedef struct {
    int graphics;
    unsigned pid;
    unsigned long long bytes;
} entry_t;

typedef struct {
    char uuid[NAME_BYTES], name[NAME_BYTES];
    unsigned long long total, used, reserved;
    int gpu, slice, sliced; /* slice is -1 for a whole card */
    entry_t entries[MAX_PROCESSES];
    int n_entries;
    fault_t faults[MAX_FAULTS];
    int n_faults;
} device_t;

typedef struct {
    char driver[NAME_BYTES];
    device_t devices[MAX_DEVICES];
    int n_devices, n_gpus;
    fault_t faults[MAX_FAULTS];
    int n_faults;
} state_t;

typedef struct {
    unsigned long long total, free, used;
} memory_t;

typedef struct {
    unsigned version;
    unsigned long long total, reserved, free, used;
} memory_v2_t;

typedef struct {
    unsigned pid;
    unsigned long long used;
    unsigned gpu_instance, compute_instance;
} process_t;

static unsigned long long number(const char *text) {
    return strcmp(text, "na") == 0 ? NOT_AVAILABLE : strtoull(text, NULL, 10);
}

static void add_entry(device_t *device, int graphics, unsigned pid, unsigned long long bytes) {
    if (device->n_entries < MAX_PROCESSES) {
        device->entries[device->n_entries++] = (entry_t){graphics, pid, bytes};
    }
}

static void read_ledger(device_t *device, const char *directory) {
    DIR *folder = opendir(directory);
    struct dirent *entry;
    if (folder == NULL) {
        return;
    }
    while ((entry = readdir(folder)) != NULL) {
        unsigned pid = (unsigned)strtoul(entry->d_name, NULL, 10);
        char path[700];
        unsigned long long bytes = 0;
        FILE *file;
        if (pid == 0 || kill((pid_t)pid, 0) != 0) {
            continue;
        }
        snprintf(path, sizeof path, "%s/%s", directory, entry->d_name);
        file = fopen(path, "r");
        if (file != NULL && fscanf(file, "%llu", &bytes) == 1 && bytes > 0) {
            add_entry(device, 0, pid, bytes);
            device->used += bytes;
        }
        if (file != NULL) {
            fclose(file);
        }
    }
    closedir(folder);
}

static void add_fault(state_t *state, device_t *device, const char *call, int code, int milliseconds) {
    fault_t *faults = device == NULL ? state->faults : device->faults;
    int *count = device == NULL ? &state->n_faults : &device->n_faults;
    if (*count < MAX_FAULTS) {
        snprintf(faults[*count].call, sizeof faults[*count].call, "%s", call);
        faults[*count].code = code;
        faults[*count].milliseconds = milliseconds;
        (*count)++;
    }
}

static device_t *add_device(state_t *state, const char *line, int is_slice) {
    char total[32], used[32], reserved[32];
    device_t *device;
    if (state->n_devices == MAX_DEVICES) {
        return NULL;
    }
    device = &state->devices[state->n_devices++];
    sscanf(line, "%*s %95s %31s %31s %31s %95[^\n]", device->uuid, total, used, reserved, device->name);
    device->total = number(total);
    device->used = number(used);
    device->reserved = number(reserved);
    if (!is_slice) {
        device->gpu = state->n_gpus++;
        device->slice = -1;
        return device;
    }
    device->gpu = state->n_gpus - 1;
    for (int i = 0; i < state->n_devices - 1; i++) {
        device->slice += state->devices[i].gpu == device->gpu && state->devices[i].slice >= 0;
    }
    return device;
}

static void read_line(state_t *state, device_t **last, const char *line) {
    char word[16] = "", first[400] = "", second[32] = "", third[32] = "";
    sscanf(line, "%15s %399s %31s %31s", word, first, second, third);
    if (strcmp(word, "driver") == 0) {
        snprintf(state->driver, sizeof state->driver, "%.90s", first);
    } else if (strcmp(word, "gpu") == 0 || strcmp(word, "slice") == 0) {
        *last = add_device(state, line, word[0] == 's');
    } else if (strcmp(word, "error") == 0) {
        add_fault(state, *last, first, atoi(second), 0);
    } else if (strcmp(word, "hang") == 0) {
        add_fault(state, *last, first, 0, atoi(second));
    } else if (*last != NULL && strcmp(word, "mig") == 0) {
        (*last)->sliced = 1;
    } else if (*last != NULL && strcmp(word, "process") == 0) {
        add_entry(*last, first[0] == 'g', (unsigned)atoi(second), number(third));
    } else if (*last != NULL && strcmp(word, "ledger") == 0) {
        read_ledger(*last, first);
    }
}

static state_t *load(void) {
    const char *path = getenv("FAKE_NVML_STATE");
    FILE *file = path == NULL ? NULL : fopen(path, "r");
    state_t *state;
    device_t *last = NULL;
    char line[512];
    if (file == NULL) {
        return NULL;
    }
    state = calloc(1, sizeof *state);
    while (state != NULL && fgets(line, sizeof line, file) != NULL) {
        read_line(state, &last, line);
    }
    fclose(file);
    return state;
}

static int fault(const fault_t *faults, int count, const char *call) {
    for (int i = 0; i < count; i++) {
        if (strcmp(faults[i].call, call) != 0 && strcmp(faults[i].call, "any") != 0) {
            continue;
        }
        if (faults[i].milliseconds > 0) {
            struct timespec span = {faults[i].milliseconds / 1000, faults[i].milliseconds % 1000 * 1000000L};
            nanosleep(&span, NULL);
        }
        if (faults[i].code != SUCCESS) {
            return faults[i].code;
        }
    }
    return SUCCESS;
}

/* Handles are small numbers in disguise: one more than the place of a card, or a thousand and the place of a slice. */
static device_t *find(state_t *state, const void *handle) {
    long wanted = (long)handle;
    for (int i = 0; i < state->n_devices; i++) {
        device_t *device = &state->devices[i];
        long own = device->slice < 0 ? device->gpu + 1 : 1000 * (device->gpu + 1) + device->slice;
        if (own == wanted) {
            return device;
        }
    }
    return NULL;
}

static void *handle_of(const device_t *device) {
    return (void *)(long)(device->slice < 0 ? device->gpu + 1 : 1000 * (device->gpu + 1) + device->slice);
}

/* Opens one call on one device: the faults of the driver, then those of the device. */
static int begin(state_t **state, device_t **device, const void *handle, const char *call) {
    int code;
    *state = load();
    if (*state == NULL) {
        return LIBRARY_NOT_FOUND;
    }
    code = fault((*state)->faults, (*state)->n_faults, call);
    if (code == SUCCESS && handle != NULL) {
        *device = find(*state, handle);
        code = *device == NULL ? GPU_IS_LOST : fault((*device)->faults, (*device)->n_faults, call);
    }
    return code;
}

int nvmlInitWithFlags(unsigned flags) {
    state_t *state;
    int code = begin(&state, NULL, NULL, "init");
    (void)flags;
    free(state);
    return code;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

int nvmlShutdown(void) { return SUCCESS; }

const char *nvmlErrorString(int code) {
    switch (code) {
    case SUCCESS: return "Success";
    case NOT_SUPPORTED: return "Not Supported";
    case NOT_FOUND: return "Not Found";
    case GPU_IS_LOST: return "GPU is lost";
    default: return "Unknown Error";
    }
}

int nvmlSystemGetDriverVersion(char *text, unsigned size) {
    state_t *state;
    int code = begin(&state, NULL, NULL, "driver");
    if (code == SUCCESS) {
        snprintf(text, size, "%s", state->driver);
    }
    free(state);
    return code;
}

int nvmlSystemGetCudaDriverVersion(int *version) {
    *version = 12040;
    return SUCCESS;
}

int nvmlSystemGetCudaDriverVersion_v2(int *version) { return nvmlSystemGetCudaDriverVersion(version); }

int nvmlDeviceGetCount_v2(unsigned *count) {
    state_t *state;
    int code = begin(&state, NULL, NULL, "count");
    if (code == SUCCESS) {
        *count = (unsigned)state->n_gpus;
    }
    free(state);
    return code;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    state_t *state;
    device_t *device = NULL;
    int code = begin(&state, &device, (void *)(long)(index + 1), "handle");
    *handle = (void *)(long)(index + 1);
    free(state);
    return code;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) {
    state_t *state;
    int code = begin(&state, NULL, NULL, "handle");
    if (code == SUCCESS) {
        code = NOT_FOUND;
        for (int i = 0; i < state->n_devices; i++) {
            device_t *device = &state->devices[i];
            if (strcmp(device->uuid, uuid) == 0) {
                *handle = handle_of(device);
                code = fault(device->faults, device->n_faults, "handle");
            }
        }
    }
    free(state);
    return code;
}

static int copy_text(const void *handle, const char *call, char *text, unsigned size) {
    state_t *state;
    device_t *device = NULL;
    int code = begin(&state, &device, handle, call);
    if (code == SUCCESS) {
        snprintf(text, size, "%s", call[0] == 'u' ? device->uuid : device->name);
    }
    free(state);
    return code;
}

int nvmlDeviceGetUUID(const void *handle, char *text, unsigned size) { return copy_text(handle, "uuid", text, size); }

int nvmlDeviceGetName(const void *handle, char *text, unsigned size) { return copy_text(handle, "name", text, size); }

int nvmlDeviceGetMemoryInfo(const void *handle, memory_t *memory) {
    state_t *state;
    device_t *device = NULL;
    int code = begin(&state, &device, handle, "memory");
    if (code == SUCCESS && device->total == NOT_AVAILABLE) {
        code = NOT_SUPPORTED;
    }
    if (code == SUCCESS) {
        memory->total = device->total;
        memory->used = device->used + device->reserved;
        memory->free = memory->total - memory->used;
    }
    free(state);
    return code;
}

int nvmlDeviceGetMemoryInfo_v2(const void *handle, memory_v2_t *memory) {
    state_t *state;
    device_t *device = NULL;
    int code = begin(&state, &device, handle, "memory_v2");
    if (code == SUCCESS && device->total == NOT_AVAILABLE) {
        code = NOT_SUPPORTED;
    }
    if (code == SUCCESS && memory->version != (sizeof *memory | 2u << 24)) {
        code = INVALID_ARGUMENT;
    }
    if (code == SUCCESS) {
        memory->total = device->total;
        memory->used = device->used;
        memory->reserved = device->reserved;
        memory->free = device->total - device->used - device->reserved;
    }
    free(state);
    return code;
}

static int list(const void *handle, int graphics, unsigned *count, process_t *processes) {
    state_t *state;
    device_t *device = NULL;
    int code = begin(&state, &device, handle, graphics ? "graphics" : "compute");
    unsigned found = 0;
    for (int i = 0; code == SUCCESS && i < device->n_entries; i++) {
        const entry_t *entry = &device->entries[i];
        if (entry->graphics == graphics) {
            if (found < *count) {
                processes[found] = (process_t){entry->pid, entry->bytes, 0xffffffffu, 0xffffffffu};
            }
            found++;
        }
    }
    if (code == SUCCESS) {
        code = found > *count ? INSUFFICIENT_SIZE : SUCCESS;
        *count = found;
    }
    free(state);
    return code;
}

int nvmlDeviceGetComputeRunningProcesses_v3(const void *handle, unsigned *count, process_t *processes) {
    return list(handle, 0, count, processes);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(const void *handle, unsigned *count, process_t *processes) {
    return list(handle, 1, count, processes);
}

int nvmlDeviceGetMigMode(const void *handle, unsigned *current, unsigned *pending) {
    state_t *state;
    device_t *device = NULL;
    int code = begin(&state, &device, handle, "mig");
    if (code == SUCCESS) {
        *current = *pending = (unsigned)device->sliced;
    }
    free(state);
    return code;
}

int nvmlDeviceGetMaxMigDeviceCount(const void *handle, unsigned *count) {
    (void)handle;
    *count = 7;
    return SUCCESS;
}

int nvmlDeviceGetMigDeviceHandleByIndex(const void *handle, unsigned index, void **slice) {
    state_t *state;
    device_t *device = NULL;
    int code = begin(&state, &device, handle, "mig");
    if (code == SUCCESS) {
        const void *wanted = (const void *)(1000 * (long)handle + (long)index);
        code = find(state, wanted) == NULL ? NOT_FOUND : SUCCESS;
        *slice = (void *)wanted;
    }
    free(state);
    return code;
}

int nvmlDeviceGetUtilizationRates(const void *handle, unsigned *rates) {
    (void)handle;
    rates[0] = rates[1] = 0;
    return SUCCESS;
}
