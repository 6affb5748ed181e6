/* A libcuda.so.1 that takes no memory and writes down how much it would have taken, so that the checks for a real card
 * can themselves be checked. FAKE_CUDA_LEDGER names the directory; this process's bytes are in the file named by its
 * pid, which the fake NVIDIA driver adds to its card. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define CONTEXT_BYTES (100ULL << 20)
#define MAX_BLOCKS 64

static unsigned long long sizes[MAX_BLOCKS];
static int context;

static int write_down(void) {
    const char *directory = getenv("FAKE_CUDA_LEDGER");
    unsigned long long total = context ? CONTEXT_BYTES : 0;
    char draft[512], path[512];
    FILE *file;
    for (int i = 0; i < MAX_BLOCKS; i++) {
        total += sizes[i];
    }
    if (directory == NULL) {
        return 999;
    }
    snprintf(draft, sizeof draft, "%s/draft-%d", directory, (int)getpid());
    snprintf(path, sizeof path, "%s/%d", directory, (int)getpid());
    file = fopen(draft, "w");
    if (file == NULL) {
        return 999;
    }
    fprintf(file, "%llu\n", total);
    fclose(file);
    return rename(draft, path) == 0 ? 0 : 999;
}

int cuInit(unsigned flags) { return flags == 0 ? 0 : 1; }

int cuDeviceGet(int *device, int ordinal) {
    *device = ordinal;
    return ordinal == 0 ? 0 : 101;
}

int cuDevicePrimaryCtxRetain(void **handle, int device) {
    (void)device;
    context = 1;
    *handle = &context;
    return write_down();
}

int cuCtxSetCurrent(void *handle) { return handle == &context ? 0 : 201; }

int cuMemAlloc_v2(unsigned long long *block, size_t size) {
    for (int i = 0; i < MAX_BLOCKS; i++) {
        if (sizes[i] == 0) {
            sizes[i] = size;
            *block = (unsigned long long)i + 1;
            return write_down();
        }
    }
    return 2;
}

int cuMemFree_v2(unsigned long long block) {
    sizes[block - 1] = 0;
    return write_down();
}

int cuMemsetD8_v2(unsigned long long block, unsigned char value, size_t count) {
    (void)value;
    return sizes[block - 1] == count ? 0 : 1;
}

int cuCtxSynchronize(void) { return 0; }
