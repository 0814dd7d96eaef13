/* A pretended card: the functions of CUDA's runtime and of cuBLAS that ONNX Runtime calls.

   The card's memory is the host's, copies are real, and kernels are counted but do nothing. So whatever ONNX Runtime does
   around its kernels is done for real on a machine without a card: it places nodes, allocates, binds, copies, records.
   What a real card would refuse is written to standard error in a line that begins with "pretended card:".

   What is not here, build.py adds as functions that return 0, which is success. */

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda_runtime_api.h"

#define DONE return cudaSuccess
#define COMPLAIN(...) fprintf(stderr, "pretended card: " __VA_ARGS__)

/* What a test asks for. */

static long launches, uploads, downloads, copied, used;

long card_launches(void) { return launches; }
long card_uploads(void) { return uploads; }
long card_downloads(void) { return downloads; }
/* Bytes that were copied from place to place in the card's memory. */
long card_copied(void) { return copied; }
/* Bytes of the card's memory that are allocated. */
long card_used(void) { return used; }

/* Of what is only handed about, nobody looks inside. */
static cudaError_t handle(void *place)
{
    *(void **)place = malloc(64);
    DONE;
}

/* Memory. */

typedef struct { char *begin; size_t size; } Range;
static Range ranges[1 << 16];
static int count;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int recording;

static int find(const void *place)
{
    for (int i = 0; i < count; i++)
        if ((char *)place >= ranges[i].begin && (char *)place < ranges[i].begin + ranges[i].size)
            return i;
    return -1;
}

static int on_card(const void *place)
{
    pthread_mutex_lock(&lock);
    int index = find(place);
    pthread_mutex_unlock(&lock);
    return index >= 0;
}

cudaError_t cudaMalloc(void **place, size_t size)
{
    if (recording)
        COMPLAIN("memory is allocated during a recording\n");
    if (posix_memalign(place, 512, size ? size : 1))
        return cudaErrorMemoryAllocation;
    if (size < 64 << 20)
        memset(*place, 0, size); /* what kernels would count then counts as nothing */
    pthread_mutex_lock(&lock);
    if (count == 1 << 16)
        abort();
    ranges[count++] = (Range){*place, size ? size : 1};
    used += size;
    pthread_mutex_unlock(&lock);
    DONE;
}

cudaError_t cudaFree(void *place)
{
    pthread_mutex_lock(&lock);
    int index = find(place);
    if (index >= 0 && ranges[index].begin == place) {
        used -= ranges[index].size;
        ranges[index] = ranges[--count];
        free(place);
    }
    pthread_mutex_unlock(&lock);
    DONE;
}

cudaError_t cudaFreeAsync(void *place, cudaStream_t stream) { return cudaFree(place); }

cudaError_t cudaHostAlloc(void **place, size_t size, unsigned flags)
{
    return posix_memalign(place, 512, size ? size : 1) ? cudaErrorMemoryAllocation : cudaSuccess;
}

cudaError_t cudaMallocHost(void **place, size_t size) { return cudaHostAlloc(place, size, 0); }

cudaError_t cudaFreeHost(void *place)
{
    free(place);
    DONE;
}

cudaError_t cudaMemPoolCreate(cudaMemPool_t *pool, const struct cudaMemPoolProps *properties) { return handle(pool); }
cudaError_t cudaMallocFromPoolAsync(void **place, size_t size, cudaMemPool_t pool, cudaStream_t stream)
{
    return cudaMalloc(place, size);
}

cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, enum cudaMemPoolAttr attribute, void *value)
{
    memset(value, 0, 8);
    DONE;
}

cudaError_t cudaMemGetInfo(size_t *available, size_t *total)
{
    *total = (size_t)140 << 30;
    *available = *total - used;
    DONE;
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *place)
{
    memset(attributes, 0, sizeof *attributes);
    attributes->type = on_card(place) ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
    attributes->devicePointer = attributes->hostPointer = (void *)place;
    DONE;
}

/* Copies. */

static cudaError_t copy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind)
{
    static const char *names[] = {"host to host", "host to card", "card to host", "card to card", "any"};
    int to_card = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    int from_card = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (!size)
        DONE;
    if (kind != cudaMemcpyDefault && (on_card(to) != to_card || on_card(from) != from_card))
        COMPLAIN("a copy, %s, of %zu bytes is none\n", names[kind], size);
    uploads += kind == cudaMemcpyHostToDevice;
    downloads += kind == cudaMemcpyDeviceToHost;
    copied += kind == cudaMemcpyDeviceToDevice ? size : 0;
    memmove(to, from, size);
    DONE;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind)
{
    if (recording)
        COMPLAIN("a copy waits during a recording\n");
    return copy(to, from, size, kind);
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t stream)
{
    if (recording && kind != cudaMemcpyDeviceToDevice)
        COMPLAIN("%zu bytes of the host's memory are recorded\n", size);
    return copy(to, from, size, kind);
}

/* A kernel's constant, such as the memory it wants: none. */
cudaError_t cudaMemcpyFromSymbol(void *to, const void *symbol, size_t size, size_t offset, enum cudaMemcpyKind kind)
{
    memset(to, 0, size);
    DONE;
}

cudaError_t cudaMemset(void *place, int value, size_t size)
{
    memset(place, value, size);
    DONE;
}

cudaError_t cudaMemsetAsync(void *place, int value, size_t size, cudaStream_t stream)
{
    return cudaMemset(place, value, size);
}

/* What the card is: like an H200. */

cudaError_t cudaGetDeviceCount(int *number)
{
    *number = 1;
    DONE;
}

cudaError_t cudaGetDevice(int *device)
{
    *device = 0;
    DONE;
}

cudaError_t cudaSetDevice(int device) { return device ? cudaErrorInvalidDevice : cudaSuccess; }

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = 13000;
    DONE;
}

cudaError_t cudaRuntimeGetVersion(int *version) { return cudaDriverGetVersion(version); }

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *card, int device)
{
    memset(card, 0, sizeof *card);
    strcpy(card->name, "pretended card");
    card->major = 9;
    card->totalGlobalMem = (size_t)140 << 30;
    card->multiProcessorCount = 132;
    card->sharedMemPerBlock = 49152;
    card->sharedMemPerBlockOptin = 232448;
    card->sharedMemPerMultiprocessor = 233472;
    card->regsPerBlock = card->regsPerMultiprocessor = 65536;
    card->warpSize = 32;
    card->maxThreadsPerBlock = card->maxThreadsDim[0] = card->maxThreadsDim[1] = 1024;
    card->maxThreadsDim[2] = 64;
    card->maxThreadsPerMultiProcessor = 2048;
    card->maxGridSize[0] = 2147483647;
    card->maxGridSize[1] = card->maxGridSize[2] = 65535;
    card->l2CacheSize = 60 << 20;
    DONE;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device)
{
    struct cudaDeviceProp card;
    cudaGetDeviceProperties(&card, device);
    switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = card.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = card.minor; break;
    case cudaDevAttrMultiProcessorCount: *value = card.multiProcessorCount; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = card.sharedMemPerBlock; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = card.sharedMemPerBlockOptin; break;
    case cudaDevAttrWarpSize: *value = card.warpSize; break;
    case cudaDevAttrMaxGridDimX: *value = card.maxGridSize[0]; break;
    default: *value = 1024;
    }
    DONE;
}

/* The driver, of which only the server's own look at the card asks. */

int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *version) { return cudaDriverGetVersion(version); }
int cuDeviceGetCount(int *number) { return cudaGetDeviceCount(number); }
int cuDeviceGet(int *device, int number) { return cudaGetDevice(device); }

int cuDeviceTotalMem_v2(size_t *total, int device)
{
    size_t available;
    return cudaMemGetInfo(&available, total);
}

/* Kernels. */

static _Thread_local struct { dim3 grid, block; size_t shared; cudaStream_t stream; } configuration;

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, struct CUstream_st *stream)
{
    configuration.grid = grid, configuration.block = block;
    configuration.shared = shared, configuration.stream = stream;
    return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream)
{
    *grid = configuration.grid, *block = configuration.block;
    *shared = configuration.shared, *(cudaStream_t *)stream = configuration.stream;
    DONE;
}

void **__cudaRegisterFatBinary(void *binary)
{
    static void *handle[4];
    return handle;
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *function)
{
    memset(attributes, 0, sizeof *attributes);
    attributes->maxThreadsPerBlock = 1024;
    attributes->ptxVersion = attributes->binaryVersion = 90;
    attributes->numRegs = 32;
    attributes->maxDynamicSharedSizeBytes = 232448;
    DONE;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    int *blocks, const void *function, int threads, size_t shared, unsigned flags)
{
    *blocks = 2;
    DONE;
}

static int launch(void)
{
    launches++;
    return 0;
}

cudaError_t cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **values, size_t shared, cudaStream_t stream)
{
    return launch();
}

cudaError_t cudaLaunchCooperativeKernel(
    const void *function, dim3 grid, dim3 block, void **values, size_t shared, cudaStream_t stream)
{
    return launch();
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *launched, const void *function, void **values)
{
    return launch();
}

int __cudaLaunchKernel() { return launch(); }
int cublasLtMatmul() { return launch(); }
int cublasGemmEx() { return launch(); }
int cublasSgemm_v2() { return launch(); }
int cublasGemmBatchedEx() { return launch(); }
int cublasGemmStridedBatchedEx() { return launch(); }
int cublasSgemmStridedBatched() { return launch(); }

/* Streams, events and recordings (CUDA graphs). */

cudaError_t cudaStreamCreate(cudaStream_t *stream) { return handle(stream); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) { return handle(stream); }
cudaError_t cudaEventCreate(cudaEvent_t *event) { return handle(event); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) { return handle(event); }

static cudaError_t wait(void)
{
    if (recording)
        COMPLAIN("the host waits during a recording\n");
    DONE;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return wait(); }
cudaError_t cudaDeviceSynchronize(void) { return wait(); }

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status)
{
    *status = recording ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    DONE;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode)
{
    recording = 1;
    DONE;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    recording = 0;
    return handle(graph);
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *executable, cudaGraph_t graph, unsigned long long flags)
{
    return handle(executable);
}

/* Errors, and what is optional. */

const char *cudaGetErrorName(cudaError_t error) { return "pretended error"; }
const char *cudaGetErrorString(cudaError_t error) { return "pretended error"; }
const char *cublasGetStatusName(int status) { return "pretended status"; }
const char *cublasGetStatusString(int status) { return "pretended status"; }

cudaError_t cudaGetDriverEntryPointByVersion(
    const char *symbol, void **function, unsigned version, unsigned long long flags,
    enum cudaDriverEntryPointQueryResult *result)
{
    return cudaErrorNotSupported;
}

/* cuBLAS and cuDNN. */

int cublasCreate_v2(void **place) { return handle(place); }
int cublasLtCreate(void **place) { return handle(place); }
int cublasLtMatmulDescCreate(void **place) { return handle(place); }
int cublasLtMatmulPreferenceCreate(void **place) { return handle(place); }
int cublasLtMatrixLayoutCreate(void **place) { return handle(place); }
int cudnnCreate(void **place) { return handle(place); }
size_t cudnnGetVersion(void) { return 91000; }
size_t cudnnGetCudartVersion(void) { return 13000; }
const char *cudnnGetErrorString(int status) { return "pretended error"; }

int cublasLtMatmulAlgoGetHeuristic(
    void *handle, void *product, void *a, void *b, void *c, void *d, void *preference, int wanted, void *results,
    int *found)
{
    *found = 1;
    return 0;
}
