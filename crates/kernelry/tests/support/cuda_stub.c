// A driver whose device does nothing but keep time: each launch takes 10 us by its clock, each copy and fill 100 us. Memory is the host's.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct { long us; } Graph;
static long now, captured;
static int capturing;
static void work(long us) { if (capturing) captured += us; else now += us; }

int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int* v) { *v = 12080; return 0; }
int cuDeviceGetCount(int* n) { *n = 1; return 0; }
int cuDeviceGet(int* device, int index) { *device = index; return 0; }
int cuDeviceGetName(char* name, int len, int device) { strcpy(name, "clockwork"); return 0; }
int cuDeviceGetAttribute(int* v, int which, int device) { *v = which == 75 ? 9 : which == 76 ? 0 : 2; return 0; }
int cuDeviceTotalMem_v2(size_t* bytes, int device) { *bytes = (size_t)8 << 30; return 0; }
int cuDevicePrimaryCtxRetain(void** context, int device) { *context = &now; return 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { return 0; }
int cuDeviceGetDefaultMemPool(void** pool, int device) { *pool = &now; return 0; }
int cuCtxSetCurrent(void* context) { return 0; }
int cuMemPoolSetAttribute(void* pool, int which, void* value) { return 0; }
int cuMemAllocAsync(uint64_t* at, size_t bytes, void* stream) { return (*at = (uint64_t)aligned_alloc(256, (bytes + 255) / 256 * 256)) ? 0 : 2; }
int cuMemFreeAsync(uint64_t at, void* stream) { free((void*)at); return 0; }
int cuMemHostAlloc(void** at, size_t bytes, unsigned flags) { return (*at = malloc(bytes)) ? 0 : 2; }
int cuMemFreeHost(void* at) { free(at); return 0; }
int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t n, void* stream) { memcpy((void*)to, from, n); return 0; }
int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t n, void* stream) { memcpy(to, (void*)from, n); return 0; }
int cuMemcpyDtoH_v2(void* to, uint64_t from, size_t n) { memcpy(to, (void*)from, n); return 0; }
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t n, void* stream) { work(100); return 0; }
int cuMemsetD8Async(uint64_t to, unsigned char value, size_t n, void* stream) { work(100); return 0; }
int cuStreamCreate(void** stream, unsigned flags) { *stream = malloc(1); return 0; }
int cuStreamDestroy_v2(void* stream) { free(stream); return 0; }
int cuStreamSynchronize(void* stream) { return 0; }
int cuStreamBeginCapture_v2(void* stream, int mode) { capturing = 1; captured = 0; return 0; }
int cuStreamEndCapture(void* stream, void** graph) {
  Graph* g = malloc(sizeof *g);
  g->us = captured;
  *graph = g;
  capturing = 0;
  return 0;
}
int cuEventCreate(void** event, unsigned flags) { *event = calloc(1, sizeof(long)); return 0; }
int cuEventRecord(void* event, void* stream) { *(long*)event = now; return 0; }
int cuEventSynchronize(void* event) { return 0; }
int cuEventDestroy_v2(void* event) { free(event); return 0; }
int cuEventElapsedTime(float* ms, void* begin, void* end) {
  if (getenv("STUB_FAILS")) return 719;
  *ms = (float)(*(long*)end - *(long*)begin) / 1e3f;
  return 0;
}
int cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long flags) {
  Graph* g = malloc(sizeof *g);
  *g = *(Graph*)graph;
  *executable = g;
  return 0;
}
int cuGraphLaunch(void* executable, void* stream) { now += ((Graph*)executable)->us; return 0; }
int cuGraphDestroy(void* graph) { free(graph); return 0; }
int cuGraphExecDestroy(void* executable) { free(executable); return 0; }
int cuModuleLoadData(void** module, const void* image) { *module = &now; return 0; }
int cuModuleUnload(void* module) { return 0; }
int cuModuleGetFunction(void** function, void* module, const char* name) { *function = &now; return 0; }
int cuModuleGetGlobal_v2(uint64_t* at, size_t* bytes, void* module, const char* name) { return 500; }
int cuFuncGetAttribute(int* value, int which, void* function) { *value = 1024; return 0; }
int cuFuncSetAttribute(void* function, int which, int value) { return 0; }
int cuLaunchKernelEx(const void* config, void* f, void** params, void** extra) {
  work(10);
  return 0;
}
int cuGetErrorName(int error, const char** text) { *text = "CUDA_ERROR_OF_THE_STUB"; return 0; }
int cuGetErrorString(int error, const char** text) { *text = "says the stub"; return 0; }
