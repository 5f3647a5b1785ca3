/* STAND-IN for NVIDIA's libcuda.so.1, for machines without an NVIDIA driver. It is not CUDA: it has no card.
 *
 * Each initialisation adds a line to `seen.txt` beside this library: the process, and CUDA_VISIBLE_DEVICES as the process
 * has it by then.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { NO_DEVICE = 100 };

int cuDriverGetVersion(int *out) {
    *out = 13000;
    return 0;
}

int cuInit(unsigned int flags) {
    char path[4096];
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    Dl_info here;
    char *end;
    FILE *file;
    (void)flags;
    if (!dladdr(&cuInit, &here)) return NO_DEVICE;
    snprintf(path, sizeof path, "%s", here.dli_fname);
    end = strrchr(path, '/');
    if (!end) return NO_DEVICE;
    snprintf(end, sizeof path - (size_t)(end - path), "/seen.txt");
    file = fopen(path, "a");
    if (!file) return NO_DEVICE;
    fprintf(file, "%d %s\n", (int)getpid(), visible ? visible : "");
    fclose(file);
    return NO_DEVICE;
}
