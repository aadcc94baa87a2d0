// A fair file-at-a-time lazy filesystem, as a peer to compare with: a file is fetched whole when it is first
// opened, kept in a cache folder, and read from there ever after. Entries and attributes are cached by the
// kernel for an hour, content is kept in page cache, reads are spliced from the cached file, opens of different
// files go on at once. Its metadata come from a local copy of the tree, which costs it nothing: it is given away.
//
//   whole_file_fuse TREE PORT CACHE_FOLDER MOUNT_POINT     (serves /PATH from 127.0.0.1:PORT; stays in the foreground)

#define FUSE_USE_VERSION 312
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/xattr.h>
#include <unistd.h>

enum { BUFFER_BYTES = 1 << 20, LOCKS = 4096, IDLE = 64 };

static int tree, cache, port;
static const char *tree_path;
static pthread_mutex_t locks[LOCKS];
static pthread_mutex_t idle_lock = PTHREAD_MUTEX_INITIALIZER;
static int idle[IDLE], idle_count;

static int give(int outcome) { return outcome < 0 ? -errno : outcome; }

static const char *below(const char *path) { return path[1] ? path + 1 : "."; }

// --- HTTP ---

static int take_connection(void) {
    pthread_mutex_lock(&idle_lock);
    int connection = idle_count > 0 ? idle[--idle_count] : -1;
    pthread_mutex_unlock(&idle_lock);
    if (connection >= 0) return connection;
    connection = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int yes = 1;
    setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    if (connect(connection, (struct sockaddr *)&address, sizeof address) < 0) {
        close(connection);
        return -1;
    }
    return connection;
}

static void give_back(int connection) {
    pthread_mutex_lock(&idle_lock);
    int is_full = idle_count == IDLE;
    if (!is_full) idle[idle_count++] = connection;
    pthread_mutex_unlock(&idle_lock);
    if (is_full) close(connection);
}

static int ask(int connection, const char *path) {
    char request[3 * 4096 + 100];
    int size = sprintf(request, "GET ");
    for (const char *at = path; *at; at++) {
        int is_plain = (*at >= 'a' && *at <= 'z') || (*at >= 'A' && *at <= 'Z') || (*at >= '0' && *at <= '9') || strchr("/._-+", *at);
        size += sprintf(request + size, is_plain ? "%c" : "%%%02X", (unsigned char)*at);
    }
    size += sprintf(request + size, " HTTP/1.1\r\nHost: store\r\n\r\n");
    return send(connection, request, (size_t)size, MSG_NOSIGNAL) == size ? 0 : -1;
}

static int write_all(int file, const char *data, size_t size) {
    while (size > 0) {
        ssize_t written = write(file, data, size);
        if (written < 0) return -1;
        data += written;
        size -= (size_t)written;
    }
    return 0;
}

// Receive an answer's body into a file; 0 if all of it came.
static int receive(int connection, int file, char *buffer) {
    size_t filled = 0;
    char *body = NULL;
    while (!body) {
        ssize_t got = recv(connection, buffer + filled, BUFFER_BYTES - 1 - filled, 0);
        if (got <= 0) return -1;
        filled += (size_t)got;
        buffer[filled] = 0;
        body = strstr(buffer, "\r\n\r\n");
    }
    body[2] = 0;
    char *length = strcasestr(buffer, "\r\nContent-Length:");
    if (strncmp(buffer, "HTTP/1.1 200", 12) != 0 || !length) return -1;
    long long left = atoll(length + 17);
    body += 4;
    size_t here = filled - (size_t)(body - buffer);
    if (write_all(file, body, here) < 0) return -1;
    left -= (long long)here;
    while (left > 0) {
        ssize_t got = recv(connection, buffer, left < BUFFER_BYTES ? (size_t)left : BUFFER_BYTES, 0);
        if (got <= 0 || write_all(file, buffer, (size_t)got) < 0) return -1;
        left -= got;
    }
    return 0;
}

static int fetch(const char *path, int file) {
    char *buffer = malloc(BUFFER_BYTES);
    int connection = take_connection();
    int outcome = connection < 0 ? -1 : ask(connection, path);
    if (outcome == 0) outcome = receive(connection, file, buffer);
    if (connection >= 0) {
        if (outcome == 0) give_back(connection);
        else close(connection);
    }
    free(buffer);
    return outcome;
}

// --- The cache: one file for each inode, complete once it has its final name ---

static int cached(const char *path) {
    struct stat found;
    if (fstatat(tree, below(path), &found, AT_SYMLINK_NOFOLLOW) < 0) return -errno;
    char name[40], fresh[48];
    snprintf(name, sizeof name, "%llu", (unsigned long long)found.st_ino);
    snprintf(fresh, sizeof fresh, "%s.new", name);
    int file = openat(cache, name, O_RDONLY | O_CLOEXEC);
    if (file >= 0) return file;
    pthread_mutex_t *lock = &locks[found.st_ino % LOCKS];
    pthread_mutex_lock(lock);
    file = openat(cache, name, O_RDONLY | O_CLOEXEC);
    if (file < 0) {
        file = openat(cache, fresh, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        if (file >= 0 && (fetch(path, file) < 0 || renameat(cache, fresh, cache, name) < 0)) {
            close(file);
            file = -1;
            errno = EIO;
        }
    }
    int outcome = give(file);
    pthread_mutex_unlock(lock);
    return outcome;
}

// --- FUSE ---

static void *fs_init(struct fuse_conn_info *connection, struct fuse_config *config) {
    connection->max_readahead = 4 << 20;
    connection->want |= connection->capable & (FUSE_CAP_SPLICE_WRITE | FUSE_CAP_SPLICE_MOVE | FUSE_CAP_ASYNC_READ |
                                               FUSE_CAP_PARALLEL_DIROPS | FUSE_CAP_READDIRPLUS);
    config->entry_timeout = config->attr_timeout = config->negative_timeout = 3600;
    config->kernel_cache = 1;
    config->use_ino = 1;
    config->nullpath_ok = 0;
    return NULL;
}

static int fs_getattr(const char *path, struct stat *found, struct fuse_file_info *info) {
    (void)info;
    return give(fstatat(tree, below(path), found, AT_SYMLINK_NOFOLLOW));
}

static int fs_readlink(const char *path, char *target, size_t size) {
    ssize_t got = readlinkat(tree, below(path), target, size - 1);
    if (got < 0) return -errno;
    target[got] = 0;
    return 0;
}

static int fs_readdir(const char *path, void *into, fuse_fill_dir_t fill, off_t offset, struct fuse_file_info *info,
                      enum fuse_readdir_flags flags) {
    (void)offset, (void)info, (void)flags;
    int folder = openat(tree, below(path), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *entries = folder < 0 ? NULL : fdopendir(folder);
    if (!entries) return -errno;
    for (struct dirent *entry; (entry = readdir(entries));) {
        struct stat known = {.st_ino = entry->d_ino, .st_mode = (mode_t)entry->d_type << 12};
        if (fill(into, entry->d_name, &known, 0, 0)) break;
    }
    closedir(entries);
    return 0;
}

static int fs_open(const char *path, struct fuse_file_info *info) {
    if ((info->flags & O_ACCMODE) != O_RDONLY) return -EROFS;
    int file = cached(path);
    if (file < 0) return file;
    info->fh = (uint64_t)file;
    info->keep_cache = 1;
    return 0;
}

static int fs_release(const char *path, struct fuse_file_info *info) {
    (void)path;
    return give(close((int)info->fh));
}

static int fs_read_buf(const char *path, struct fuse_bufvec **buffers, size_t size, off_t offset, struct fuse_file_info *info) {
    (void)path;
    struct fuse_bufvec *source = malloc(sizeof *source);
    *source = FUSE_BUFVEC_INIT(size);
    source->buf[0].flags = FUSE_BUF_IS_FD | FUSE_BUF_FD_SEEK;
    source->buf[0].fd = (int)info->fh;
    source->buf[0].pos = offset;
    *buffers = source;
    return 0;
}

static int fs_statfs(const char *path, struct statvfs *found) {
    (void)path;
    return give(fstatvfs(tree, found));
}

static int fs_getxattr(const char *path, const char *name, char *value, size_t size) {
    char full[8192];
    snprintf(full, sizeof full, "%s%s", tree_path, path);
    return give((int)lgetxattr(full, name, value, size));
}

static int fs_listxattr(const char *path, char *names, size_t size) {
    char full[8192];
    snprintf(full, sizeof full, "%s%s", tree_path, path);
    return give((int)llistxattr(full, names, size));
}

static const struct fuse_operations operations = {
    .init = fs_init, .getattr = fs_getattr, .readlink = fs_readlink, .readdir = fs_readdir, .open = fs_open,
    .release = fs_release, .read_buf = fs_read_buf, .statfs = fs_statfs, .getxattr = fs_getxattr, .listxattr = fs_listxattr,
};

int main(int count, char **given) {
    if (count != 5) {
        fprintf(stderr, "usage: whole_file_fuse TREE PORT CACHE_FOLDER MOUNT_POINT\n");
        return 2;
    }
    tree_path = given[1];
    tree = open(given[1], O_PATH | O_DIRECTORY | O_CLOEXEC);
    port = atoi(given[2]);
    cache = open(given[3], O_PATH | O_DIRECTORY | O_CLOEXEC);
    for (int at = 0; at < LOCKS; at++) pthread_mutex_init(&locks[at], NULL);
    char *arguments[] = {given[0], "-f", "-o", "ro,allow_other,default_permissions,suid,dev,fsname=whole_file,clone_fd,max_threads=16", given[4], NULL};
    return fuse_main(5, arguments, &operations, NULL);
}
