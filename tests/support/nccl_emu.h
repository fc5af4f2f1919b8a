// nccl_emu.h - what wrpo_cuda.cu calls of NCCL, between ranks on the devices of cuda_emu.h: threads or processes of one
// machine, which share a piece of memory. As with a communicator that does not block, a call is under way until
// ncclCommGetAsyncError has been asked twice; then its stream is busy until a thread beside the rank's has moved the
// bytes. A rank that does not take part lets the others wait until they abort.
//   NCCL_EMU_FAIL=RANK:CALL   this call of this rank (0 opens the communicator) ends in an error and moves nothing
// Sizes that do not match, and two ranks on one device, are errors.
#pragma once
#include <atomic>
#include <fcntl.h>
#include <thread>
#include <time.h>
#include <unistd.h>
enum ncclResult_t {
    ncclSuccess, ncclUnhandledCudaError, ncclSystemError, ncclInternalError, ncclInvalidArgument, ncclInvalidUsage,
    ncclRemoteError, ncclInProgress
};
enum ncclDataType_t { ncclUint8 = 1, ncclFloat32 = 7 };
struct ncclUniqueId { char internal[128]; };
struct ncclConfig_t { int blocking; };
#define NCCL_CONFIG_INITIALIZER {-1}
namespace emu {
enum { NCCL_RANKS = 8, NCCL_BOX = 1 << 14 };
struct Mail {                                                    // zeros at first
    std::atomic<int> arrived, turn;
    int device[NCCL_RANKS];
    size_t bytes[NCCL_RANKS][NCCL_RANKS];                        // [from][to], of the call under way
    char box[NCCL_RANKS][NCCL_RANKS][NCCL_BOX];
};
struct Parcel { char* p; size_t bytes; int peer; };
inline void nap() { const timespec t = {0, 20000}; nanosleep(&t, nullptr); }
}
struct ncclComm {
    emu::Mail* mail = nullptr; int rank = 0, ranks = 0, device = 0; emu::Stream* stream = nullptr;
    std::vector<emu::Parcel> out, in; int calls = 0, looks = 0;
    std::thread worker; std::atomic<int> state{ncclSuccess}; std::atomic<bool> stop{false};
    char name[64] = "", last[64] = "";
    bool gate() {                                                // false: aborted
        const int turn = mail->turn;
        if (mail->arrived.fetch_add(1) + 1 == ranks) { mail->arrived = 0; mail->turn++; return true; }
        while (mail->turn == turn) {
            if (stop) return false;
            emu::nap();
        }
        return true;
    }
    template <class F> void begin(F work) {
        int who = -1, call = -1; const char* e = getenv("NCCL_EMU_FAIL");
        if (e) sscanf(e, "%d:%d", &who, &call);
        const bool fails = who == rank && call == calls++;
        if (worker.joinable()) worker.join();
        state = ncclInProgress; looks = 0;
        worker = std::thread([this, fails, work]() {
            if (fails) snprintf(last, sizeof last, "asked to fail");
            const int r = fails ? (int)ncclSystemError : work();
            if (stream && !fails && r == ncclSuccess) stream->busy = 0;
            state = r;
        });
    }
    int open() {
        const int f = shm_open(name, O_RDWR, 0600);
        if (f < 0) return ncclSystemError;
        mail = (emu::Mail*)mmap(nullptr, sizeof(emu::Mail), PROT_READ | PROT_WRITE, MAP_SHARED, f, 0); close(f);
        mail->device[rank] = device;
        if (!gate()) return ncclInternalError;
        if (rank == 0) shm_unlink(name);
        for (int i = 0; i < ranks; ++i) for (int k = 0; k < i; ++k) if (mail->device[i] == mail->device[k]) {
            snprintf(last, sizeof last, "Duplicate GPU detected: ranks %d and %d", k, i); return ncclInvalidUsage;
        }
        return gate() ? ncclSuccess : ncclInternalError;
    }
    int move() {
        size_t most = 0;
        for (int i = 0; i < ranks; ++i) mail->bytes[rank][i] = 0;
        for (auto& p : out) mail->bytes[rank][p.peer] = p.bytes;
        if (!gate()) return ncclInternalError;
        for (int i = 0; i < ranks; ++i) for (int k = 0; k < ranks; ++k) most = std::max(most, mail->bytes[i][k]);
        size_t due = 0, wanted = 0;
        for (int i = 0; i < ranks; ++i) due += mail->bytes[i][rank] > 0;
        for (auto& p : in) { wanted += p.bytes > 0; if (p.bytes != mail->bytes[p.peer][rank]) wanted = ranks + 1; }
        if (due != wanted) return snprintf(last, sizeof last, "sizes differ"), ncclInvalidUsage;
        for (size_t at = 0; at < most; at += emu::NCCL_BOX) {
            auto piece = [at](size_t n) { return at < n ? std::min(n - at, (size_t)emu::NCCL_BOX) : (size_t)0; };
            for (auto& p : out) memcpy(mail->box[rank][p.peer], p.p + at, piece(p.bytes));
            if (!gate()) return ncclInternalError;
            for (auto& p : in) memcpy(p.p + at, mail->box[p.peer][rank], piece(p.bytes));
            if (!gate()) return ncclInternalError;
        }
        return ncclSuccess;
    }
};
typedef ncclComm* ncclComm_t;
namespace emu { inline thread_local int nccl_depth; inline thread_local ncclComm_t nccl_grouped; }
inline const char* ncclGetErrorString(ncclResult_t r) {
    return r == ncclSystemError ? "unhandled system error" : r == ncclInvalidUsage ? "invalid usage" : "internal error";
}
inline const char* ncclGetLastError(ncclComm_t c) { return c->last; }
inline ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
    static std::atomic<int> number;
    memset(id, 0, sizeof *id);
    snprintf(id->internal, 64, "/wrpo_nccl_%ld_%d", (long)getpid(), number++);
    shm_unlink(id->internal);                                  // of a killed process with this number
    const int f = shm_open(id->internal, O_RDWR | O_CREAT | O_EXCL, 0600);
    const bool ok = f >= 0 && ftruncate(f, sizeof(emu::Mail)) == 0;
    if (f >= 0) close(f);
    return ok ? ncclSuccess : ncclSystemError;
}
inline ncclResult_t ncclCommInitRankConfig(ncclComm_t* c, int ranks, ncclUniqueId id, int rank, ncclConfig_t* config) {
    *c = nullptr;
    if (config->blocking || ranks > emu::NCCL_RANKS) return ncclInvalidArgument;
    ncclComm_t n = *c = new ncclComm;
    n->rank = rank; n->ranks = ranks; n->device = emu_device;
    snprintf(n->name, sizeof n->name, "%.60s", id.internal);
    n->begin([n]() { return n->open(); });
    return ncclInProgress;
}
inline ncclResult_t ncclCommAbort(ncclComm_t c) {
    c->stop = true;
    if (c->worker.joinable()) c->worker.join();
    if (c->state != ncclSuccess && c->stream) c->stream->busy = 0;     // otherwise it may be gone
    if (c->rank == 0) shm_unlink(c->name);
    if (c->mail) munmap((void*)c->mail, sizeof(emu::Mail));
    delete c; return ncclSuccess;
}
inline ncclResult_t ncclCommFinalize(ncclComm_t) { return ncclSuccess; }
inline ncclResult_t ncclCommDestroy(ncclComm_t c) { return ncclCommAbort(c); }
inline ncclResult_t ncclCommGetAsyncError(ncclComm_t c, ncclResult_t* r) {
    const int state = c->state;
    *r = state == ncclInProgress && c->stream && ++c->looks > 2 ? ncclSuccess : (ncclResult_t)state; return ncclSuccess;
}
inline ncclResult_t nccl_begin(ncclComm_t c, emu::Stream* s) {
    if (s->device != emu_device || c->device != emu_device || c->state != ncclSuccess) return ncclInvalidUsage;
    s->land(s->copies); s->busy = 1; c->stream = s;
    c->begin([c]() { return c->move(); });
    return ncclInProgress;
}
inline ncclResult_t ncclGroupStart() { ++emu::nccl_depth; return ncclSuccess; }
inline ncclResult_t nccl_add(ncclComm_t c, emu::Stream* s, bool sent, void* p, size_t bytes, int peer) {
    if (!emu::nccl_depth) return ncclInvalidUsage;               // NCCL takes it; here nobody calls it so
    if (emu::nccl_grouped != c) c->out.clear(), c->in.clear();
    emu::nccl_grouped = c; c->stream = s;
    (sent ? c->out : c->in).push_back({(char*)p, bytes, peer}); return ncclSuccess;
}
inline ncclResult_t ncclSend(const void* p, size_t n, ncclDataType_t t, int peer, ncclComm_t c, emu::Stream* s) {
    return nccl_add(c, s, true, (void*)p, t == ncclFloat32 ? n * 4 : n, peer);
}
inline ncclResult_t ncclRecv(void* p, size_t n, ncclDataType_t t, int peer, ncclComm_t c, emu::Stream* s) {
    return nccl_add(c, s, false, p, t == ncclFloat32 ? n * 4 : n, peer);
}
inline ncclResult_t ncclGroupEnd() {
    ncclComm_t c = emu::nccl_grouped;
    if (--emu::nccl_depth || !c) return ncclSuccess;
    emu::nccl_grouped = nullptr;
    return nccl_begin(c, c->stream);
}
inline ncclResult_t ncclAllGather(const void* mine, void* all, size_t n, ncclDataType_t, ncclComm_t c, emu::Stream* s) {
    c->out.clear(); c->in.clear();
    for (int i = 0; i < c->ranks; ++i) if (i != c->rank) {       // in place
        c->out.push_back({(char*)mine, n, i}); c->in.push_back({(char*)all + (size_t)i * n, n, i});
    }
    if (mine != (char*)all + (size_t)c->rank * n) return ncclInvalidArgument;
    return nccl_begin(c, s);
}
