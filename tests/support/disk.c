/* A library for LD_PRELOAD (glibc) between a program and its disk. 98_lost.c says what it is for.
   It counts what the program does to files below DISK_ROOT: opening one to write it, each write of it, cutting it,
   syncing it or a directory, renaming, removing, making a directory. By these variables of the environment it
     DISK_COUNT=FILE   writes that count into FILE when the program exits
     DISK_KILL=N       kills the program before operation N; DISK_TEAR=1: a write is done by half before
     DISK_FAIL=N       lets operation N fail with errno DISK_ERRNO
     DISK_LOG=FILE     writes every operation into FILE, for 98_lost.c to work out what a power cut leaves
   and, whatever the folder,
     DISK_READ=N       lets read or mapping N of a file fail with errno DISK_ERRNO; every read gives 7 bytes if it is 0
     DISK_MALLOC=N     lets allocation N fail
     DISK_SHRINK=PATH  cuts the file to a page once it is mapped; DISK_TOUCH=PATH: writes into it
   Streams are glibc's own (fopencookie) over functions that do this, since those of fopen call the kernel unseen. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

extern void *__libc_malloc(size_t n);
static long setting(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text ? atol(text) : otherwise;
}
static struct { long kill, fail, error, read, malloc; bool tear; const char *root; int log; } at;
static long operations, reads, mallocs;
static bool ready;
static void *next(const char *name) { return dlsym(RTLD_NEXT, name); }
__attribute__((constructor)) static void begin(void) {
    const char *log = getenv("DISK_LOG");
    at.kill = setting("DISK_KILL", 0), at.fail = setting("DISK_FAIL", 0), at.error = setting("DISK_ERRNO", 0);
    at.read = setting("DISK_READ", -1), at.tear = setting("DISK_TEAR", 0) != 0, at.root = getenv("DISK_ROOT");
    at.log = log ? open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666) : -1;
    at.malloc = setting("DISK_MALLOC", -1);
    ready = true;
}
__attribute__((destructor)) static void end(void) {
    const char *path = getenv("DISK_COUNT");
    const int fd = path ? open(path, O_WRONLY | O_CREAT | O_TRUNC, 0666) : -1;
    ready = false;
    if (fd >= 0) dprintf(fd, "%ld %ld %ld\n", operations, reads, mallocs), close(fd);
}
static bool ours(const char *path) {
    return ready && at.root && !strncmp(path, at.root, strlen(at.root));
}
static void put(const void *p, size_t n) {
    if (write(at.log, p, n) != (ssize_t)n) _exit(99);
}
/* One operation: c(reate), w(rite), t(runcate), s(ync), r(ename), u(nlink), m(kdir), d (rmdir). Logged before it is
   done: what is done is the operations before the one that a kill, a failure or the end comes at. */
static bool operation(char what, const char *path, const char *to, const void *data, size_t size) {
    operations++;
    if (at.log >= 0) {
        const size_t sizes[3] = {strlen(path), strlen(to), size};
        put(&what, 1), put(sizes, sizeof sizes), put(path, sizes[0]), put(to, sizes[1]);
        if (size) put(data, size);
    }
    if (operations == at.kill && !(what == 'w' && at.tear)) kill(getpid(), SIGKILL);
    if (operations != at.fail) return true;
    errno = (int)at.error;
    return false;
}

/* ---- streams ---- */
typedef struct stream { FILE *f; int fd; char path[1000]; bool written; } stream;
static stream streams[64];
static stream *stream_of(const FILE *f) {
    for (int i = 0; f && i < 64; i++)
        if (streams[i].f == f) return &streams[i];
    return NULL;
}
static ssize_t stream_read(void *cookie, char *buffer, size_t size) {
    const stream *s = cookie;
    reads++;
    if (at.read >= 0 && !at.error && size > 7) size = 7;
    if (reads == at.read && at.error) { errno = (int)at.error; return -1; }
    return read(s->fd, buffer, size);
}
static ssize_t stream_write(void *cookie, const char *buffer, size_t size) {
    const stream *s = cookie;
    if (!operation('w', s->path, "", buffer, size)) return 0;
    if (operations == at.kill) {
        if (write(s->fd, buffer, size / 2) < 0) errno = EIO;
        kill(getpid(), SIGKILL);
    }
    const ssize_t n = write(s->fd, buffer, size);
    return n < 0 ? 0 : n;
}
static int stream_seek(void *cookie, off64_t *offset, int whence) {
    const stream *s = cookie;
    const off_t to = lseek(s->fd, (off_t)*offset, whence);
    *offset = to;
    return to < 0 ? -1 : 0;
}
static int stream_close(void *cookie) {
    stream *s = cookie;
    const int fd = s->fd;
    *s = (stream){0};
    return close(fd);
}
FILE *fopen(const char *path, const char *mode) {
    FILE *(*real)(const char *, const char *) = (FILE * (*)(const char *, const char *))next("fopen");
    const bool writes = strpbrk(mode, "wa+") != NULL, plus = strchr(mode, '+') != NULL;
    struct stat st;
    stream *s = streams;
    while (s < streams + 64 && s->fd) s++;
    if (!ready || s == streams + 64 || !strncmp(path, "/proc", 5) || (writes && !ours(path))) return real(path, mode);
    const bool made = *mode != 'r' && stat(path, &st) != 0, cut = *mode == 'w';
    if ((made || cut) && !operation(made ? 'c' : 't', path, "", NULL, 0)) return NULL;
    const int flags = (plus ? O_RDWR : writes ? O_WRONLY : O_RDONLY) | (*mode != 'r' ? O_CREAT : 0)
                    | (cut ? O_TRUNC : 0) | (*mode == 'a' ? O_APPEND : 0) | O_CLOEXEC;
    const int fd = open(path, flags, 0666);
    if (fd < 0) return NULL;
    *s = (stream){.fd = fd, .written = writes};
    snprintf(s->path, sizeof s->path, "%s", path);
    char plain[4] = {*mode, plus ? '+' : 0};
    s->f = fopencookie(s, plain, (cookie_io_functions_t){stream_read, stream_write, stream_seek, stream_close});
    return s->f;
}
int fileno(FILE *f) {
    static int (*real)(FILE *);
    const stream *s = stream_of(f);
    if (s) return s->fd;
    if (!real) real = (int (*)(FILE *))next("fileno");
    return real(f);
}

/* ---- the rest ---- */
static bool path_of(int fd, char *path, size_t size) {   /* relative, where it is below this folder */
    char link[64], here[1000];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    const ssize_t n = readlink(link, path, size - 1);
    if (n < 0) return false;
    path[n] = 0;
    if (getcwd(here, sizeof here) && !strncmp(path, here, strlen(here)) && path[strlen(here)] == '/')
        memmove(path, path + strlen(here) + 1, (size_t)n - strlen(here));
    return true;
}
int fsync(int fd) {
    int (*real)(int) = (int (*)(int))next("fsync");
    char path[1000];
    if (path_of(fd, path, sizeof path) && ours(path) && !operation('s', path, "", NULL, 0)) return -1;
    return real(fd);
}
int ftruncate(int fd, off_t size) {
    int (*real)(int, off_t) = (int (*)(int, off_t))next("ftruncate");
    char path[1000];
    const int64_t n = size;
    if (path_of(fd, path, sizeof path) && ours(path) && !operation('t', path, "", &n, sizeof n)) return -1;
    return real(fd, size);
}
int rename(const char *from, const char *to) {
    int (*real)(const char *, const char *) = (int (*)(const char *, const char *))next("rename");
    return ours(from) && !operation('r', from, to, NULL, 0) ? -1 : real(from, to);
}
int remove(const char *path) {
    struct stat st;
    if (lstat(path, &st) != 0) return -1;
    const bool dir = S_ISDIR(st.st_mode);
    if (ours(path) && !operation(dir ? 'd' : 'u', path, "", NULL, 0)) return -1;
    int (*real)(const char *) = (int (*)(const char *))next(dir ? "rmdir" : "unlink");
    return real(path);
}
int rmdir(const char *path) {
    int (*real)(const char *) = (int (*)(const char *))next("rmdir");
    return ours(path) && !operation('d', path, "", NULL, 0) ? -1 : real(path);
}
int mkdir(const char *path, mode_t mode) {
    int (*real)(const char *, mode_t) = (int (*)(const char *, mode_t))next("mkdir");
    struct stat st;
    if (stat(path, &st) == 0) { errno = EEXIST; return -1; }
    return ours(path) && !operation('m', path, "", NULL, 0) ? -1 : real(path, mode);
}
void *mmap(void *address, size_t size, int protection, int flags, int fd, off_t offset) {
    void *(*real)(void *, size_t, int, int, int, off_t) =
        (void *(*)(void *, size_t, int, int, int, off_t))next("mmap");
    const char *shrink = getenv("DISK_SHRINK"), *touch = getenv("DISK_TOUCH");
    char path[1000];
    if (fd < 0 || !ready) return real(address, size, protection, flags, fd, offset);
    if (++reads == at.read && at.error) { errno = (int)at.error; return MAP_FAILED; }
    void *p = real(address, size, protection, flags, fd, offset);
    if (!path_of(fd, path, sizeof path)) return p;
    if (shrink && !strcmp(path, shrink) && truncate(path, 4096) != 0) _exit(99);
    const int to = touch && !strcmp(path, touch) ? open(path, O_WRONLY) : -1;
    if (to >= 0 && (pwrite(to, "\0\0\0\0", 4, 8192) != 4 || close(to))) _exit(99);
    return p;
}
void *malloc(size_t size) {
    if (ready && ++mallocs == at.malloc) { errno = ENOMEM; return NULL; }
    return __libc_malloc(size);
}
