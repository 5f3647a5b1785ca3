/* STAND-IN for NVIDIA's libnvidia-ml.so.1, for machines without an NVIDIA driver. It is not NVML.
 *
 * Each call opens the text file that STAND_IN_NVML names and answers from it. A line is `<gpu>.<value> <content>`, for
 * example `0.power_mw 310000` or `0.mig.1.uuid MIG-2`; `driver`, `cuda` and `count` have no card before them. A card
 * answers NVML_ERROR_NOT_SUPPORTED for what the file does not hold, as real cards do for what they cannot tell.
 * `0.lost 1` makes every call about that card fail as for one that fell off the bus. Each line `event <gpu> <xid>` is
 * reported once.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, ARGUMENT = 2, UNSUPPORTED = 3, NOT_FOUND = 6, NO_DRIVER = 9, TIMED_OUT = 10, LOST = 15 };
enum { CARDS = 8, PARTS = 4, LINE = 512 };

/* Handles are addresses in this table: a card, or a MIG part of it. */
static char handles[CARDS][PARTS + 1];
static char the_events;
static int told;

static FILE *state(void) {
    const char *path = getenv("STAND_IN_NVML");
    return path ? fopen(path, "r") : NULL;
}

/* The content of the first line that begins with `key`. */
static int find(const char *key, char *out, size_t size) {
    char line[LINE];
    FILE *file = state();
    int found = 0;
    if (!file) return 0;
    while (!found && fgets(line, sizeof line, file)) {
        size_t length = strlen(key);
        if (strncmp(line, key, length) || line[length] != ' ') continue;
        line[strcspn(line, "\n")] = 0;
        snprintf(out, size, "%s", line + length + 1);
        found = 1;
    }
    fclose(file);
    return found;
}

static void place(const void *handle, int *card, int *part) {
    size_t offset = (size_t)((const char *)handle - &handles[0][0]);
    *card = (int)(offset / (PARTS + 1));
    *part = (int)(offset % (PARTS + 1)) - 1;
}

static int text(const void *handle, const char *name, char *out, size_t size) {
    char key[LINE], lost[8];
    int card, part;
    place(handle, &card, &part);
    snprintf(key, sizeof key, "%d.lost", card);
    if (find(key, lost, sizeof lost) && atoi(lost)) return LOST;
    if (part < 0) snprintf(key, sizeof key, "%d.%s", card, name);
    else snprintf(key, sizeof key, "%d.mig.%d.%s", card, part, name);
    return find(key, out, size) ? OK : UNSUPPORTED;
}

static int number(const void *handle, const char *name, unsigned long long *out) {
    char content[LINE];
    int status = text(handle, name, content, sizeof content);
    if (status == OK) *out = strtoull(content, NULL, 10);
    return status;
}

static int small(const void *handle, const char *name, unsigned int *out) {
    unsigned long long wide = 0;
    int status = number(handle, name, &wide);
    if (status == OK) *out = (unsigned int)wide;
    return status;
}

int nvmlInitWithFlags(unsigned int flags) {
    FILE *file = state();
    (void)flags;
    if (!file) return NO_DRIVER;
    fclose(file);
    return OK;
}
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int status) { return status == LOST ? "GPU is lost" : "told by the stand-in"; }
int nvmlSystemGetDriverVersion(char *out, unsigned int size) { return find("driver", out, size) ? OK : UNSUPPORTED; }
int nvmlSystemGetCudaDriverVersion(int *out) {
    char content[LINE];
    if (!find("cuda", content, sizeof content)) return UNSUPPORTED;
    *out = atoi(content);
    return OK;
}
int nvmlDeviceGetCount_v2(unsigned int *out) {
    char content[LINE];
    *out = find("count", content, sizeof content) ? (unsigned int)atoi(content) : 0;
    return OK;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **out) {
    if (index >= CARDS) return ARGUMENT;
    *out = &handles[index][0];
    return OK;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, void **out) {
    char content[LINE];
    for (int card = 0; card < CARDS; card++)
        for (int part = 0; part <= PARTS; part++)
            if (text(&handles[card][part], "uuid", content, sizeof content) == OK && !strcmp(content, uuid)) {
                *out = &handles[card][part];
                return OK;
            }
    return NOT_FOUND;
}
int nvmlDeviceGetName(void *card, char *out, unsigned int size) { return text(card, "name", out, size); }
int nvmlDeviceGetUUID(void *card, char *out, unsigned int size) { return text(card, "uuid", out, size); }
int nvmlDeviceGetBrand(void *card, unsigned int *out) { return small(card, "brand", out); }
int nvmlDeviceGetArchitecture(void *card, unsigned int *out) { return small(card, "architecture", out); }
int nvmlDeviceGetCudaComputeCapability(void *card, int *major, int *minor) {
    char content[LINE];
    int status = text(card, "capability", content, sizeof content);
    if (status == OK && sscanf(content, "%d.%d", major, minor) != 2) return UNSUPPORTED;
    return status;
}
struct memory { unsigned long long total, unused, used; };
int nvmlDeviceGetMemoryInfo(void *card, struct memory *out) {
    int status = number(card, "memory_total", &out->total);
    if (status != OK) return status;
    if (number(card, "memory_used", &out->used) != OK) out->used = 0;
    out->unused = out->total - out->used;
    return OK;
}
struct pci { char legacy[16]; unsigned int domain, bus, device, id, subsystem; char bus_id[32]; };
int nvmlDeviceGetPciInfo_v3(void *card, struct pci *out) {
    memset(out, 0, sizeof *out);
    return text(card, "bus_id", out->bus_id, sizeof out->bus_id);
}
struct rates { unsigned int gpu, memory; };
int nvmlDeviceGetUtilizationRates(void *card, struct rates *out) {
    int status = small(card, "utilization", &out->gpu);
    return status == OK ? small(card, "memory_utilization", &out->memory) : status;
}
int nvmlDeviceGetTemperature(void *card, int sensor, unsigned int *out) {
    (void)sensor;
    return small(card, "temperature_c", out);
}
int nvmlDeviceGetPowerUsage(void *card, unsigned int *out) { return small(card, "power_mw", out); }
int nvmlDeviceGetEnforcedPowerLimit(void *card, unsigned int *out) { return small(card, "power_limit_mw", out); }
int nvmlDeviceGetTotalEnergyConsumption(void *card, unsigned long long *out) { return number(card, "energy_mj", out); }
int nvmlDeviceGetTotalEccErrors(void *card, int kind, int counter, unsigned long long *out) {
    (void)counter;
    return number(card, kind == 0 ? "ecc_corrected" : "ecc_uncorrected", out);
}
int nvmlDeviceGetPcieThroughput(void *card, int direction, unsigned int *out) {
    return small(card, direction == 0 ? "pcie_sent_kbps" : "pcie_received_kbps", out);
}
int nvmlDeviceGetPcieReplayCounter(void *card, unsigned int *out) { return small(card, "pcie_replays", out); }
int nvmlDeviceGetMigMode(void *card, unsigned int *current, unsigned int *pending) {
    int status = small(card, "mig_mode", current);
    *pending = *current;
    return status;
}
int nvmlDeviceGetMaxMigDeviceCount(void *card, unsigned int *out) {
    (void)card;
    *out = PARTS;
    return OK;
}
int nvmlDeviceGetMigDeviceHandleByIndex(void *card, unsigned int index, void **out) {
    char content[LINE];
    void *part = (char *)card + 1 + index;
    if (index >= PARTS || text(part, "uuid", content, sizeof content) != OK) return NOT_FOUND;
    *out = part;
    return OK;
}
struct attributes { unsigned int processors, copiers, decoders, encoders, jpeg, ofa, gpu_slices, compute_slices; unsigned long long memory_mb; };
int nvmlDeviceGetAttributes_v2(void *part, struct attributes *out) {
    int status;
    memset(out, 0, sizeof *out);
    status = small(part, "slices", &out->gpu_slices);
    out->compute_slices = out->gpu_slices;
    return status;
}
int nvmlEventSetCreate(void **out) {
    *out = &the_events;
    return OK;
}
int nvmlEventSetFree(void *events) { (void)events; return OK; }
int nvmlDeviceRegisterEvents(void *card, unsigned long long kinds, void *events) {
    (void)card; (void)kinds; (void)events;
    return OK;
}
struct event { void *card; unsigned long long kind, data; unsigned int gpu_instance, compute_instance; };
int nvmlEventSetWait_v2(void *events, struct event *out, unsigned int timeout_ms) {
    char line[LINE];
    FILE *file = state();
    int seen = 0, card, xid, status = TIMED_OUT;
    (void)events; (void)timeout_ms;
    if (!file) return TIMED_OUT;
    while (status == TIMED_OUT && fgets(line, sizeof line, file)) {
        if (sscanf(line, "event %d %d", &card, &xid) != 2 || seen++ < told) continue;
        memset(out, 0, sizeof *out);
        out->card = &handles[card][0];
        out->kind = 8;
        out->data = (unsigned long long)xid;
        told++;
        status = OK;
    }
    fclose(file);
    return status;
}
