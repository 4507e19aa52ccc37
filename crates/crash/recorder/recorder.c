/*
 * Stands between a process and the files of one directory (LD_PRELOAD).
 *
 * It does three things, each only when a variable asks for it:
 *
 *   EVIDENCEOS_RECORDER_TRACE=FILE   appends every change of a file or a name below the directory, and
 *                                    every sync, with its data and in order, to FILE. What is in the
 *                                    trace when a reply arrives was done before the reply was sent.
 *   EVIDENCEOS_FAILPOINT=name:nth:kill|enospc|eio[,...]
 *                                    plays the moments that are inside SQLite or the C library; names
 *                                    that it does not know are our own code's. EVIDENCEOS_FAILPOINT_HITS
 *                                    is the file for "reached NAME" and "fired NAME".
 *   EVIDENCEOS_RECORDER_READ_ONLY=FILE while FILE exists, nothing below the directory can be changed or
 *                                    synced (EROFS), open files neither: as after a file system met an
 *                                    error and its kernel made it read-only.
 *
 * EVIDENCEOS_RECORDER_DIR=DIR is the directory, as the process will name it: absolute.
 * EVIDENCEOS_RECORDER_CLOCK=SECONDS is added to the real-time clock.
 *
 * One lock is held over each system call and its record, so that the order of the records is the order
 * of the calls. The -shm file is left out: it is a memory map, and SQLite makes it again; so is the
 * control socket, which each daemon makes for itself. System calls are made directly, so that nothing
 * here comes back to itself.
 *
 * A record is `struct header` in the machine's byte order, then path, second path and data. Paths are
 * relative to the directory.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

enum kind {
    CREATE = 'C',      /* a file that was not there */
    TRUNCATE = 'T',    /* to `offset` bytes */
    WRITE = 'W',       /* data at `offset` */
    SYNC = 'S',        /* of a file, returned */
    SYNC_DIR = 'D',    /* of a directory, returned */
    SYNC_ALL = 'A',    /* of the file system, returned */
    RENAME = 'R',      /* path to second path */
    UNLINK = 'U',
    MKDIR = 'M',
    RMDIR = 'X',
    UNKNOWN = '?'      /* a call that this file does not record */
};

struct header {
    uint32_t magic;
    uint32_t kind;
    uint64_t inode;
    uint64_t offset;
    uint32_t path_length;
    uint32_t second_length;
    uint64_t data_length;
};

#define MAGIC 0x52545645u /* "EVTR" */
#define MAX_FDS 65536
#define MAX_ARMED 8

struct open_file {
    char *path; /* relative to the directory; NULL: not ours */
    uint64_t inode;
    int is_directory;
};

enum what { KILL, FULL, BROKEN };

struct armed {
    const char *name;
    unsigned long nth;
    enum what what;
    unsigned long seen;
};

/* The moments that are known here. */
static const char *const POINTS[] = {
    "store.commit.wal_written", "store.commit.fsync", "store.checkpoint.db_half",
    "store.checkpoint.db_synced", "store.wal.restarted", "log.tile.half",
    "accounts.tmp.half",
};
enum { WAL_WRITTEN, WAL_FSYNC, DB_HALF, DB_SYNCED, WAL_RESTARTED, TILE_HALF, ACCOUNTS_HALF, POINT_COUNT };

static char root[PATH_MAX];
static size_t root_length;
static int trace_fd = -1;
static int hits_fd = -1;
static const char *read_only_while;
static time_t clock_offset;
static struct open_file open_files[MAX_FDS];
static struct armed armed[MAX_ARMED];
static int armed_count;
static int was_reached[POINT_COUNT];
static unsigned long wal_writes; /* since its last sync */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void die(const char *what) {
    static const char prefix[] = "recorder: ";
    (void)!syscall(SYS_write, 2, prefix, sizeof prefix - 1);
    (void)!syscall(SYS_write, 2, what, strlen(what));
    (void)!syscall(SYS_write, 2, "\n", 1);
    _exit(65);
}

static int open_for_append(const char *variable) {
    const char *path = getenv(variable);
    if (!path || !*path)
        return -1;
    int fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fd < 0)
        die(variable);
    return fd;
}

static int point_named(const char *name) {
    for (int point = 0; point < POINT_COUNT; point++)
        if (strcmp(POINTS[point], name) == 0)
            return point;
    return -1;
}

static void arm(char *asked) {
    char *rest = NULL;
    for (char *part = strtok_r(asked, ",", &rest); part; part = strtok_r(NULL, ",", &rest)) {
        char *nth = strchr(part, ':');
        char *what = nth ? strchr(nth + 1, ':') : NULL;
        if (!what)
            die("EVIDENCEOS_FAILPOINT is not name:nth:kill|enospc|eio");
        *nth++ = 0;
        *what++ = 0;
        int point = point_named(part);
        if (point < 0)
            continue; /* our own code's */
        if (armed_count == MAX_ARMED)
            die("too many failpoints");
        armed[armed_count++] = (struct armed){
            .name = POINTS[point],
            .nth = strtoul(nth, NULL, 10),
            .what = strcmp(what, "kill") == 0 ? KILL : strcmp(what, "enospc") == 0 ? FULL : BROKEN,
        };
    }
}

__attribute__((constructor)) static void start(void) {
    const char *directory = getenv("EVIDENCEOS_RECORDER_DIR");
    const char *clock = getenv("EVIDENCEOS_RECORDER_CLOCK");
    if (clock)
        clock_offset = (time_t)strtoll(clock, NULL, 10);
    if (!directory || *directory != '/' || strlen(directory) >= sizeof root)
        return;
    strcpy(root, directory);
    root_length = strlen(root);
    trace_fd = open_for_append("EVIDENCEOS_RECORDER_TRACE");
    hits_fd = open_for_append("EVIDENCEOS_FAILPOINT_HITS");
    read_only_while = getenv("EVIDENCEOS_RECORDER_READ_ONLY");
    const char *asked = getenv("EVIDENCEOS_FAILPOINT");
    if (asked)
        arm(strdup(asked));
}

/* ---- moments ---- */

static void note(const char *what, int point) {
    char line[128];
    int length = snprintf(line, sizeof line, "%s %s\n", what, POINTS[point]);
    if (hits_fd >= 0 && syscall(SYS_write, hits_fd, line, length) != length)
        die("cannot note a hit");
}

static _Noreturn void kill_self(void) {
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;)
        pause();
}

/* Whether it is a moment's turn; says what is to happen. */
static int is_turn(int point, enum what *what) {
    if (!was_reached[point]) {
        was_reached[point] = 1;
        note("reached", point);
    }
    for (int i = 0; i < armed_count; i++)
        if (armed[i].name == POINTS[point] && ++armed[i].seen == armed[i].nth) {
            note("fired", point);
            *what = armed[i].what;
            return 1;
        }
    return 0;
}

static int failed(enum what what) {
    errno = what == FULL ? ENOSPC : EIO;
    return -1;
}

/* Whether a change of ours must fail; then errno says why. */
static int is_read_only(void) {
    if (!read_only_while || syscall(SYS_faccessat, AT_FDCWD, read_only_while, F_OK) != 0)
        return 0;
    errno = EROFS;
    return 1;
}

static void kill_at(int point) {
    enum what what;
    if (is_turn(point, &what))
        kill_self();
}

/* ---- records ---- */

static void record(enum kind kind, uint64_t inode, uint64_t offset, const char *path,
                   const char *second, const struct iovec *data, int pieces, size_t data_length) {
    if (trace_fd < 0)
        return;
    struct header header = {
        .magic = MAGIC,
        .kind = kind,
        .inode = inode,
        .offset = offset,
        .path_length = (uint32_t)strlen(path),
        .second_length = (uint32_t)strlen(second),
        .data_length = data_length,
    };
    struct iovec parts[3 + 64] = {
        {&header, sizeof header},
        {(void *)path, header.path_length},
        {(void *)second, header.second_length},
    };
    if (pieces > 64)
        die("a write in too many pieces");
    int count = 3;
    size_t left = data_length;
    for (int i = 0; i < pieces && left > 0; i++) {
        size_t length = data[i].iov_len < left ? data[i].iov_len : left;
        parts[count++] = (struct iovec){data[i].iov_base, length};
        left -= length;
    }
    ssize_t whole = (ssize_t)(sizeof header + header.path_length + header.second_length + data_length);
    if (syscall(SYS_writev, trace_fd, parts, count) != whole)
        die("cannot write the trace");
}

static void record_name(enum kind kind, const char *path, const char *second) {
    record(kind, 0, 0, path, second, NULL, 0, 0);
}

static void unknown(const char *call) {
    record_name(UNKNOWN, call, "");
}

/* ---- paths and descriptors ---- */

/* The path of a call relative to our directory, or NULL: not ours. */
static const char *ours(int directory, const char *path, char *buffer) {
    if (root_length == 0 || !path)
        return NULL;
    if (*path == '/') {
        if (strncmp(path, root, root_length) != 0)
            return NULL;
        path += root_length;
        if (*path != 0 && *path != '/')
            return NULL;
        while (*path == '/')
            path++;
        strncpy(buffer, path, PATH_MAX - 1);
        buffer[PATH_MAX - 1] = 0;
    } else {
        if (directory < 0 || directory >= MAX_FDS || !open_files[directory].path)
            return NULL;
        const char *parent = open_files[directory].path;
        snprintf(buffer, PATH_MAX, "%s%s%s", parent, *parent ? "/" : "", path);
    }
    size_t length = strlen(buffer);
    while (length > 0 && buffer[length - 1] == '/')
        buffer[--length] = 0;
    if (length >= 4 && strcmp(buffer + length - 4, "-shm") == 0)
        return NULL;
    if (strncmp(buffer, "control.sock", 12) == 0)
        return NULL;
    return buffer;
}

static struct open_file *file_of(int fd) {
    if (fd < 0 || fd >= MAX_FDS || !open_files[fd].path)
        return NULL;
    return &open_files[fd];
}

static struct open_file *regular(int fd) {
    struct open_file *file = file_of(fd);
    return file && !file->is_directory ? file : NULL;
}

static int is_wal(const struct open_file *file) {
    return strcmp(file->path, "evidenceos.db-wal") == 0;
}

static int is_database(const struct open_file *file) {
    return strcmp(file->path, "evidenceos.db") == 0;
}

static int is_tile(const struct open_file *file) {
    return strncmp(file->path, "log/tile/", 9) == 0;
}

static int is_accounts(const struct open_file *file) {
    return strcmp(file->path, "accounts.tmp") == 0;
}

static int open_file(int directory, const char *path, int flags, mode_t mode) {
    char buffer[PATH_MAX];
    const char *name = ours(directory, path, buffer);
    if (!name)
        return (int)syscall(SYS_openat, directory, path, flags, mode);
    pthread_mutex_lock(&lock);
    int existed = syscall(SYS_faccessat, directory, path, F_OK) == 0;
    int writes = (flags & O_ACCMODE) != O_RDONLY || (flags & O_TRUNC) || (!existed && (flags & O_CREAT));
    if (writes && is_read_only()) {
        pthread_mutex_unlock(&lock);
        return -1;
    }
    int fd = (int)syscall(SYS_openat, directory, path, flags, mode);
    struct stat status;
    if (fd >= MAX_FDS)
        die("too many descriptors");
    if (fd >= 0 && fstat(fd, &status) == 0) {
        free(open_files[fd].path);
        open_files[fd] = (struct open_file){strdup(name), status.st_ino, S_ISDIR(status.st_mode)};
        if (S_ISREG(status.st_mode) && !existed)
            record(CREATE, status.st_ino, 0, name, "", NULL, 0, 0);
        else if (S_ISREG(status.st_mode) && (flags & O_TRUNC))
            record(TRUNCATE, status.st_ino, 0, name, "", NULL, 0, 0);
    }
    pthread_mutex_unlock(&lock);
    return fd;
}

static mode_t mode_of(int flags, va_list arguments) {
    return flags & (O_CREAT | __O_TMPFILE) ? va_arg(arguments, mode_t) : 0;
}

#define OPEN(NAME)                                         \
    EXPORT int NAME(const char *path, int flags, ...) {    \
        va_list arguments;                                 \
        va_start(arguments, flags);                        \
        mode_t mode = mode_of(flags, arguments);           \
        va_end(arguments);                                 \
        return open_file(AT_FDCWD, path, flags, mode);     \
    }
#define OPENAT(NAME)                                                      \
    EXPORT int NAME(int directory, const char *path, int flags, ...) {    \
        va_list arguments;                                                \
        va_start(arguments, flags);                                       \
        mode_t mode = mode_of(flags, arguments);                          \
        va_end(arguments);                                                \
        return open_file(directory, path, flags, mode);                   \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

EXPORT int close(int fd) {
    if (file_of(fd)) {
        pthread_mutex_lock(&lock);
        free(open_files[fd].path);
        open_files[fd].path = NULL;
        pthread_mutex_unlock(&lock);
    }
    return (int)syscall(SYS_close, fd);
}

/* ---- data ---- */

/* The first `length` bytes of `data`, at `offset`. */
static ssize_t write_at(int fd, const struct iovec *data, int pieces, size_t length, off_t offset) {
    (void)pieces;
    return syscall(SYS_pwrite64, fd, data[0].iov_base, length, offset);
}

/* A write that ends in the middle: half of it is there, and then the process dies or sees an error. */
static ssize_t half(int fd, struct open_file *file, const struct iovec *data, off_t offset, enum what what) {
    size_t length = data[0].iov_len / 2;
    if (length > 0 && write_at(fd, data, 1, length, offset) == (ssize_t)length)
        record(WRITE, file->inode, (uint64_t)offset, file->path, "", data, 1, length);
    if (what == KILL)
        kill_self();
    return failed(what);
}

static ssize_t write_file(int fd, struct open_file *file, const struct iovec *data, int pieces, off_t at) {
    pthread_mutex_lock(&lock);
    if (is_read_only()) {
        pthread_mutex_unlock(&lock);
        return -1;
    }
    off_t offset = at;
    if (at < 0) {
        int flags = fcntl(fd, F_GETFL);
        offset = lseek(fd, 0, flags & O_APPEND ? SEEK_END : SEEK_CUR);
    }
    ssize_t written;
    enum what what;
    if ((is_database(file) && is_turn(DB_HALF, &what)) || (is_tile(file) && is_turn(TILE_HALF, &what)) ||
        (is_accounts(file) && is_turn(ACCOUNTS_HALF, &what))) {
        written = half(fd, file, data, offset, what);
    } else {
        struct stat before;
        int restarts = is_wal(file) && offset == 0 && fstat(fd, &before) == 0 && before.st_size > 0;
        if (at < 0)
            written = syscall(SYS_writev, fd, data, pieces);
        else
            written = write_at(fd, data, pieces, data[0].iov_len, at);
        if (written > 0)
            record(WRITE, file->inode, (uint64_t)offset, file->path, "", data, pieces, (size_t)written);
        if (is_wal(file))
            wal_writes++;
        if (restarts)
            kill_at(WAL_RESTARTED);
    }
    pthread_mutex_unlock(&lock);
    return written;
}

EXPORT ssize_t write(int fd, const void *buffer, size_t length) {
    struct open_file *file = regular(fd);
    if (!file)
        return syscall(SYS_write, fd, buffer, length);
    struct iovec data = {(void *)buffer, length};
    return write_file(fd, file, &data, 1, -1);
}

EXPORT ssize_t writev(int fd, const struct iovec *data, int pieces) {
    struct open_file *file = regular(fd);
    if (!file || pieces < 1)
        return syscall(SYS_writev, fd, data, pieces);
    return write_file(fd, file, data, pieces, -1);
}

#define PWRITE(NAME)                                                                    \
    EXPORT ssize_t NAME(int fd, const void *buffer, size_t length, off_t offset) {      \
        struct open_file *file = regular(fd);                                           \
        if (!file)                                                                      \
            return syscall(SYS_pwrite64, fd, buffer, length, offset);                   \
        struct iovec data = {(void *)buffer, length};                                   \
        return write_file(fd, file, &data, 1, offset);                                  \
    }
PWRITE(pwrite)
PWRITE(pwrite64)

#define FTRUNCATE(NAME)                                                                         \
    EXPORT int NAME(int fd, off_t length) {                                                     \
        struct open_file *file = regular(fd);                                                   \
        if (!file)                                                                              \
            return (int)syscall(SYS_ftruncate, fd, length);                                     \
        pthread_mutex_lock(&lock);                                                              \
        int result = is_read_only() ? -1 : (int)syscall(SYS_ftruncate, fd, length);             \
        if (result == 0)                                                                        \
            record(TRUNCATE, file->inode, (uint64_t)length, file->path, "", NULL, 0, 0);        \
        pthread_mutex_unlock(&lock);                                                            \
        return result;                                                                          \
    }
FTRUNCATE(ftruncate)
FTRUNCATE(ftruncate64)

/* ---- syncs ---- */

static int sync_file(long call, int fd) {
    struct open_file *file = file_of(fd);
    if (!file)
        return (int)syscall(call, fd);
    pthread_mutex_lock(&lock);
    if (is_read_only()) {
        pthread_mutex_unlock(&lock);
        return -1;
    }
    /* A commit is at least the header and the page of one frame; a sync of less is none. */
    if (is_wal(file) && wal_writes >= 2) {
        enum what what;
        kill_at(WAL_WRITTEN);
        if (is_turn(WAL_FSYNC, &what)) {
            if (what == KILL)
                kill_self();
            pthread_mutex_unlock(&lock);
            return failed(what);
        }
    }
    int result = (int)syscall(call, fd);
    if (result == 0) {
        if (is_wal(file))
            wal_writes = 0;
        record(file->is_directory ? SYNC_DIR : SYNC, file->inode, 0, file->path, "", NULL, 0, 0);
        if (is_database(file))
            kill_at(DB_SYNCED);
    }
    pthread_mutex_unlock(&lock);
    return result;
}

EXPORT int fsync(int fd) { return sync_file(SYS_fsync, fd); }

EXPORT int fdatasync(int fd) { return sync_file(SYS_fdatasync, fd); }

EXPORT int syncfs(int fd) {
    pthread_mutex_lock(&lock);
    int result = file_of(fd) && is_read_only() ? -1 : (int)syscall(SYS_syncfs, fd);
    if (result == 0 && file_of(fd))
        record_name(SYNC_ALL, "", "");
    pthread_mutex_unlock(&lock);
    return result;
}

/* ---- names ---- */

static int rename_file(int from, const char *old, int to, const char *new, unsigned flags) {
    char old_buffer[PATH_MAX], new_buffer[PATH_MAX];
    const char *old_name = ours(from, old, old_buffer);
    const char *new_name = ours(to, new, new_buffer);
    pthread_mutex_lock(&lock);
    int result = (old_name || new_name) && is_read_only()
                     ? -1
                     : (int)syscall(SYS_renameat2, from, old, to, new, flags);
    if (result == 0 && (old_name || new_name)) {
        if (old_name && new_name && flags == 0)
            record_name(RENAME, old_name, new_name);
        else
            unknown("rename across the directory's border");
    }
    pthread_mutex_unlock(&lock);
    return result;
}

EXPORT int rename(const char *old, const char *new) { return rename_file(AT_FDCWD, old, AT_FDCWD, new, 0); }

EXPORT int renameat(int from, const char *old, int to, const char *new) {
    return rename_file(from, old, to, new, 0);
}

EXPORT int renameat2(int from, const char *old, int to, const char *new, unsigned flags) {
    return rename_file(from, old, to, new, flags);
}

static int name_call(enum kind kind, int directory, const char *path, unsigned argument) {
    char buffer[PATH_MAX];
    const char *name = ours(directory, path, buffer);
    long call = kind == MKDIR ? SYS_mkdirat : SYS_unlinkat;
    pthread_mutex_lock(&lock);
    int result = name && is_read_only() ? -1 : (int)syscall(call, directory, path, argument);
    if (result == 0 && name)
        record_name(kind, name, "");
    pthread_mutex_unlock(&lock);
    return result;
}

EXPORT int unlink(const char *path) { return name_call(UNLINK, AT_FDCWD, path, 0); }

EXPORT int rmdir(const char *path) { return name_call(RMDIR, AT_FDCWD, path, AT_REMOVEDIR); }

EXPORT int unlinkat(int directory, const char *path, int flags) {
    return name_call(flags & AT_REMOVEDIR ? RMDIR : UNLINK, directory, path, (unsigned)flags);
}

EXPORT int mkdir(const char *path, mode_t mode) { return name_call(MKDIR, AT_FDCWD, path, mode); }

EXPORT int mkdirat(int directory, const char *path, mode_t mode) {
    return name_call(MKDIR, directory, path, mode);
}

/* ---- calls that change files in ways that are not recorded ---- */

static void unknown_if(int fd, const char *call) {
    if (regular(fd)) {
        pthread_mutex_lock(&lock);
        unknown(call);
        pthread_mutex_unlock(&lock);
    }
}

EXPORT int fallocate(int fd, int mode, off_t offset, off_t length) {
    unknown_if(fd, "fallocate");
    return (int)syscall(SYS_fallocate, fd, mode, offset, length);
}

EXPORT ssize_t pwritev(int fd, const struct iovec *data, int pieces, off_t offset) {
    unknown_if(fd, "pwritev");
    return syscall(SYS_pwritev, fd, data, pieces, (long)offset, 0L);
}

EXPORT ssize_t copy_file_range(int in, off64_t *in_at, int out, off64_t *out_at, size_t length, unsigned flags) {
    unknown_if(out, "copy_file_range");
    return syscall(SYS_copy_file_range, in, in_at, out, out_at, length, flags);
}

EXPORT int link(const char *old, const char *new) {
    char buffer[PATH_MAX];
    if (ours(AT_FDCWD, new, buffer))
        unknown("link");
    return (int)syscall(SYS_linkat, AT_FDCWD, old, AT_FDCWD, new, 0);
}

/* ---- the clock ---- */

EXPORT int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = (int)syscall(SYS_clock_gettime, clock, now);
    if (result == 0 && clock == CLOCK_REALTIME)
        now->tv_sec += clock_offset;
    return result;
}
