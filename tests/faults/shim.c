/*
 * Makes the disk hang or refuse for a process that is started with LD_PRELOAD.
 *
 * SHIM_PREFIX   the calls below are affected for paths that begin with this
 * SHIM_TRIGGER  only while this file exists
 * SHIM_DELAY    milliseconds by which opening, reading, and looking at a file is delayed
 * SHIM_HELD     the call that was delayed is appended to this file, if it was made by the first thread
 * SHIM_FSYNC    errno of fsync(2) for directories
 * SHIM_FCHMOD   errno of fchmod(2)
 * SHIM_FALLOCATE errno of every other call of fallocate(2)
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static int affected(const char *path)
{
    const char *prefix = getenv("SHIM_PREFIX"), *trigger = getenv("SHIM_TRIGGER");
    return path && prefix && trigger && strncmp(path, prefix, strlen(prefix)) == 0
        && syscall(SYS_faccessat, AT_FDCWD, trigger, F_OK) == 0;
}

static int affected_descriptor(int descriptor)
{
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return affected(path);
}

static void delay(const char *call)
{
    const char *ms = getenv("SHIM_DELAY"), *held = getenv("SHIM_HELD");
    if (!ms)
        return;
    if (held && syscall(SYS_gettid) == getpid()) {
        int file = syscall(SYS_openat, AT_FDCWD, held, O_WRONLY | O_CREAT | O_APPEND, 0600);
        if (file >= 0) {
            dprintf(file, "%s\n", call);
            close(file);
        }
    }
    struct timespec time = {atol(ms) / 1000, atol(ms) % 1000 * 1000000};
    nanosleep(&time, NULL);
}

static int refused(const char *name)
{
    const char *number = getenv(name);
    return number ? atoi(number) : 0;
}

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define OPEN(name) \
    int name(const char *path, int flags, ...) \
    { \
        va_list more; \
        va_start(more, flags); \
        mode_t mode = va_arg(more, mode_t); \
        va_end(more); \
        REAL(name); \
        if (affected(path)) \
            delay(#name); \
        return real(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
    int name(int directory, const char *path, int flags, ...) \
    { \
        va_list more; \
        va_start(more, flags); \
        mode_t mode = va_arg(more, mode_t); \
        va_end(more); \
        REAL(name); \
        if (affected(path) || (path[0] != '/' && affected_descriptor(directory))) \
            delay(#name); \
        return real(directory, path, flags, mode); \
    }
OPENAT(openat)
OPENAT(openat64)

#define LOOK(name, type) \
    int name(const char *path, struct type *found) \
    { \
        REAL(name); \
        if (affected(path)) \
            delay(#name); \
        return real(path, found); \
    }
LOOK(stat, stat)
LOOK(stat64, stat64)
LOOK(lstat, stat)
LOOK(lstat64, stat64)

ssize_t read(int descriptor, void *buffer, size_t size)
{
    REAL(read);
    if (affected_descriptor(descriptor))
        delay("read");
    return real(descriptor, buffer, size);
}

ssize_t preadv64v2(int descriptor, const struct iovec *parts, int count, off64_t offset, int flags)
{
    REAL(preadv64v2);
    if (affected_descriptor(descriptor))
        delay("preadv64v2");
    return real(descriptor, parts, count, offset, flags);
}

int fsync(int descriptor)
{
    REAL(fsync);
    struct stat found;
    int error = refused("SHIM_FSYNC");
    if (error && fstat(descriptor, &found) == 0 && S_ISDIR(found.st_mode) && affected_descriptor(descriptor)) {
        errno = error;
        return -1;
    }
    return real(descriptor);
}

int fchmod(int descriptor, mode_t mode)
{
    REAL(fchmod);
    int error = refused("SHIM_FCHMOD");
    if (error && affected_descriptor(descriptor)) {
        errno = error;
        return -1;
    }
    return real(descriptor, mode);
}

int chmod(const char *path, mode_t mode)
{
    REAL(chmod);
    int error = refused("SHIM_FCHMOD");
    if (error && affected(path)) {
        errno = error;
        return -1;
    }
    return real(path, mode);
}

int fallocate(int descriptor, int mode, off_t offset, off_t size)
{
    REAL(fallocate);
    static int calls;
    int error = refused("SHIM_FALLOCATE");
    if (error && affected_descriptor(descriptor) && calls++ % 2 == 0) {
        errno = error;
        return -1;
    }
    return real(descriptor, mode, offset, size);
}
