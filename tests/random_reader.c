/* A job that uses a tree at random and compares all it sees with a known copy of that tree, on a local disk.
 *
 *     random_reader [-s SEED] [-t SECONDS] [-n OPERATIONS] [-d] ROOT KNOWN LIST
 *
 * LIST names what there is to use: paths relative to both trees, each ended by a NUL. At random it looks at
 * them, looks for names that are not there, opens files (and keeps some open), reads ranges, maps files and
 * reads pages, lists directories and reads links. -d drops a file's pages from the page cache before they are
 * read, so that reads reach the filesystem. A difference or an error is a line on standard error: operation,
 * path, what. It ends after SECONDS or OPERATIONS, at SIGTERM, or after FAILURES_MAX failures, with a line of
 * JSON on standard output, and exit code 1 if anything failed, 2 if it was called wrongly.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum {
    HELD_COUNT = 16,               /* files that are open and mapped at a time */
    READ_LENGTH_MAX = 128 * 1024,
    PAST_END = 4096,               /* how far behind its end a file is read */
    PAGES_AT_ONCE = 8,
    PAGE_LENGTH = 4096,
    ABSENT_NAMES = 4,              /* per path: some looks are first ones, some repeat */
    FAILURES_MAX = 100,
};

struct entry {
    const char *path;
    struct stat known;
};

struct held {
    const struct entry *entry;
    int file;
    char *map, *known_map;         /* NULL if the file is empty */
};

struct kind {
    const struct entry **entries;
    size_t count;
};

static int root, known_root;
static bool dropping;
static struct kind everything, files, directories, links;
static struct held held[HELD_COUNT];
static char buffer[READ_LENGTH_MAX];

static uint64_t operations, bytes, failures;
static double start_ms, longest_ms;
static const char *operation, *path;
static const char *longest_operation = "", *longest_path = "";

/* Chance */

static uint64_t state;

static uint64_t draw(void)         /* splitmix64, public domain, Sebastiano Vigna */
{
    uint64_t mixed = (state += 0x9e3779b97f4a7c15u);
    mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9u;
    mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111ebu;
    return mixed ^ (mixed >> 31);
}

static uint64_t below(uint64_t bound)
{
    return draw() % bound;
}

static const struct entry *any(const struct kind *kind)
{
    return kind->entries[below(kind->count)];
}

/* Accounts */

static void die(const char *what)
{
    fprintf(stderr, "random_reader: %s: %s\n", what, strerror(errno));
    exit(2);
}

static void *allocated(void *memory)
{
    if (!memory)
        die("memory");
    return memory;
}

static double now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

static void begin(const char *name, const char *at)
{
    operation = name;
    path = at;
    start_ms = now_ms();
}

/* Only what the tree in question does is timed: call it before anything of the known one is read. */
static void finish(void)
{
    double took_ms = now_ms() - start_ms;
    operations++;
    if (took_ms > longest_ms) {
        longest_ms = took_ms;
        longest_operation = operation;
        longest_path = path;
    }
}

__attribute__((format(printf, 1, 2))) static void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "%s %s: ", operation, path);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    failures++;
}

static void fail_errno(const char *call)
{
    int number = errno;
    fail("%s: errno %d, %s", call, number, strerror(number));
}

static void print_json_string(const char *text)
{
    putchar('"');
    for (const unsigned char *each = (const unsigned char *)text; *each; each++) {
        if (*each == '"' || *each == '\\')
            printf("\\%c", *each);
        else if (*each < 0x20)
            printf("\\u%04x", *each);
        else
            putchar(*each);
    }
    putchar('"');
}

static void print_result(void)
{
    printf("{\"operations\": %llu, \"bytes\": %llu, \"failures\": %llu, \"longest_ms\": %.3f, \"operation\": ",
           (unsigned long long)operations, (unsigned long long)bytes, (unsigned long long)failures, longest_ms);
    print_json_string(longest_operation);
    printf(", \"path\": ");
    print_json_string(longest_path);
    printf("}\n");
}

/* Comparisons */

static void compare_status(const struct stat *found, const struct stat *known)
{
    if (found->st_mode != known->st_mode)
        fail("mode %o, not %o", found->st_mode, known->st_mode);
    if (!S_ISDIR(known->st_mode) && found->st_size != known->st_size)
        fail("size %lld, not %lld", (long long)found->st_size, (long long)known->st_size);
    if (found->st_mtim.tv_sec != known->st_mtim.tv_sec || found->st_mtim.tv_nsec != known->st_mtim.tv_nsec)
        fail("mtime %lld.%09ld, not %lld.%09ld", (long long)found->st_mtim.tv_sec, found->st_mtim.tv_nsec,
             (long long)known->st_mtim.tv_sec, known->st_mtim.tv_nsec);
}

static void compare_bytes(const char *known, off_t offset, size_t length)
{
    bytes += length;
    if (!length || !memcmp(buffer, known + offset, length))
        return;
    size_t first = 0;
    while (buffer[first] == known[offset + (off_t)first])
        first++;
    fail("byte %lld differs: %02x, not %02x", (long long)offset + (long long)first, (unsigned char)buffer[first],
         (unsigned char)known[offset + (off_t)first]);
}

/* Operations */

static void look(void)
{
    const struct entry *entry = any(&everything);
    struct stat found;
    begin("stat", entry->path);
    int result = fstatat(root, entry->path, &found, AT_SYMLINK_NOFOLLOW);
    finish();
    if (result)
        fail_errno("fstatat");
    else
        compare_status(&found, &entry->known);
}

static void look_for_absent(void)
{
    static char absent[PATH_MAX];
    struct stat found;
    snprintf(absent, sizeof absent, "%s.absent%d", any(&everything)->path, (int)below(ABSENT_NAMES));
    if (!fstatat(known_root, absent, &found, AT_SYMLINK_NOFOLLOW) || errno != ENOENT)
        return;
    begin("absent", absent);
    int result = fstatat(root, absent, &found, AT_SYMLINK_NOFOLLOW);
    int number = errno;
    finish();
    if (longest_path == absent)
        longest_path = allocated(strdup(absent));
    errno = number;
    if (!result)
        fail("exists");
    else if (errno != ENOENT)
        fail_errno("fstatat");
}

static char *mapped(int file, off_t length)
{
    char *map = mmap(NULL, (size_t)length, PROT_READ, MAP_SHARED, file, 0);
    return map == MAP_FAILED ? NULL : map;
}

static void let_go(struct held *slot)
{
    if (!slot->entry)
        return;
    if (slot->map)
        munmap(slot->map, (size_t)slot->entry->known.st_size);
    if (slot->known_map)
        munmap(slot->known_map, (size_t)slot->entry->known.st_size);
    close(slot->file);
    *slot = (struct held){0};
}

/* Open a file, map it and hold it in a slot, in place of what was there. */
static void open_one(void)
{
    struct held *slot = &held[below(HELD_COUNT)];
    const struct entry *entry = any(&files);
    struct stat found;
    let_go(slot);
    begin("open", entry->path);
    int file = openat(root, entry->path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    int result = file < 0 ? -1 : fstat(file, &found);
    finish();
    if (result) {
        fail_errno(file < 0 ? "openat" : "fstat");
        if (file >= 0)
            close(file);
        return;
    }
    *slot = (struct held){.entry = entry, .file = file};
    compare_status(&found, &entry->known);
    if (!entry->known.st_size)
        return;
    int known = openat(known_root, entry->path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (known < 0 || !(slot->known_map = mapped(known, entry->known.st_size)))
        die(entry->path);
    close(known);
    if (!(slot->map = mapped(file, entry->known.st_size)))
        fail_errno("mmap");
}

static struct held *any_held(void)
{
    struct held *slot = NULL;
    for (size_t first = below(HELD_COUNT), at = 0; at < HELD_COUNT && !slot; at++)
        if (held[(first + at) % HELD_COUNT].entry)
            slot = &held[(first + at) % HELD_COUNT];
    if (slot && dropping)
        posix_fadvise(slot->file, 0, 0, POSIX_FADV_DONTNEED);
    return slot;
}

static void read_range(void)
{
    struct held *slot = any_held();
    if (!slot)
        return;
    off_t size = slot->entry->known.st_size, offset = (off_t)below((uint64_t)size + PAST_END);
    size_t wanted = 1 + below(1u << (1 + below(17)));  /* as many short ones as long ones, 128 KiB at most */
    size_t expected = offset >= size ? 0 : (off_t)wanted < size - offset ? wanted : (size_t)(size - offset);
    begin("read", slot->entry->path);
    ssize_t got = pread(slot->file, buffer, wanted, offset);
    finish();
    if (got < 0)
        fail_errno("pread");
    else if ((size_t)got != expected)
        fail("%zd bytes at %lld, not %zu", got, (long long)offset, expected);
    else
        compare_bytes(slot->known_map, offset, expected);
}

static sigjmp_buf out_of_copy;
static volatile sig_atomic_t copying;

static void on_bus_error(int number)
{
    if (copying)
        siglongjmp(out_of_copy, 1);
    signal(number, SIG_DFL);
}

/* Copy from a mapping; false if the kernel had no page for us: SIGBUS is a mapping's EIO. */
__attribute__((noinline)) static bool copied(char *target, const char *source, size_t length)
{
    bool whole = false;
    if (!sigsetjmp(out_of_copy, 0)) {
        copying = true;
        memcpy(target, source, length);
        whole = true;
    }
    copying = false;
    return whole;
}

static void read_pages(void)
{
    struct held *slot = any_held();
    if (!slot || !slot->map)
        return;
    off_t size = slot->entry->known.st_size;
    for (uint64_t left = 1 + below(PAGES_AT_ONCE); left; left--) {
        off_t offset = (off_t)below((uint64_t)size) / PAGE_LENGTH * PAGE_LENGTH;
        size_t length = size - offset < PAGE_LENGTH ? (size_t)(size - offset) : PAGE_LENGTH;
        begin("map", slot->entry->path);
        bool whole = copied(buffer, slot->map + offset, length);
        finish();
        if (whole)
            compare_bytes(slot->known_map, offset, length);
        else
            fail("SIGBUS at %lld", (long long)offset);
    }
    /* Pages that any mapping shows are not dropped: let them go for the next who drops. */
    if (dropping)
        madvise(slot->map, (size_t)size, MADV_DONTNEED);
}

struct listing {
    char **lines;                  /* type and name of each */
    size_t count, room;
};

/* Return whether the directory was read; errno says why not. */
static bool list(int tree, const char *at, struct listing *listing)
{
    int file = openat(tree, at, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *directory = file < 0 ? NULL : fdopendir(file);
    if (!directory)
        return false;
    struct dirent *each;
    while (errno = 0, (each = readdir(directory))) {
        if (!strcmp(each->d_name, ".") || !strcmp(each->d_name, ".."))
            continue;
        if (listing->count == listing->room) {
            listing->room = listing->room ? 2 * listing->room : 64;
            listing->lines = allocated(realloc(listing->lines, listing->room * sizeof *listing->lines));
        }
        if (asprintf(&listing->lines[listing->count], "%s (type %d)", each->d_name, each->d_type) < 0)
            die("memory");
        listing->count++;
    }
    int number = errno;
    closedir(directory);
    errno = number;
    return !number;
}

static int by_line(const void *one, const void *other)
{
    return strcmp(*(char *const *)one, *(char *const *)other);
}

static void sort_lines(struct listing *listing)
{
    if (listing->count)
        qsort(listing->lines, listing->count, sizeof *listing->lines, by_line);
}

static void compare_listings(const struct listing *found, const struct listing *known)
{
    for (size_t at = 0; at < found->count || at < known->count; at++) {
        const char *one = at < found->count ? found->lines[at] : "nothing more";
        const char *other = at < known->count ? known->lines[at] : "nothing more";
        if (strcmp(one, other)) {
            fail("lists %s, not %s", one, other);
            return;
        }
    }
}

static void free_listing(struct listing *listing)
{
    for (size_t at = 0; at < listing->count; at++)
        free(listing->lines[at]);
    free(listing->lines);
}

static void list_one(void)
{
    const struct entry *entry = any(&directories);
    struct listing found = {0}, known = {0};
    begin("list", entry->path);
    bool listed = list(root, entry->path, &found);
    int number = errno;
    finish();
    errno = number;
    if (!listed) {
        fail_errno("readdir");
    } else if (!list(known_root, entry->path, &known)) {
        die(entry->path);
    } else {
        sort_lines(&found);
        sort_lines(&known);
        compare_listings(&found, &known);
    }
    free_listing(&found);
    free_listing(&known);
}

static void read_link(void)
{
    const struct entry *entry = any(&links);
    char found[PATH_MAX], known[PATH_MAX];
    begin("readlink", entry->path);
    ssize_t length = readlinkat(root, entry->path, found, sizeof found);
    finish();
    ssize_t expected = readlinkat(known_root, entry->path, known, sizeof known);
    if (expected < 0)
        die(entry->path);
    if (length < 0)
        fail_errno("readlinkat");
    else if (length != expected || memcmp(found, known, (size_t)length))
        fail("leads to %.*s, not %.*s", (int)length, found, (int)expected, known);
}

static const struct {
    const struct kind *of;
    void (*run)(void);
} choices[] = {
    {&everything, look}, {&everything, look_for_absent}, {&files, open_one}, {&files, read_range},
    {&files, read_pages}, {&directories, list_one}, {&links, read_link},
};

/* The job */

static void add(struct kind *kind, const struct entry *entry)
{
    kind->entries = allocated(realloc(kind->entries, (kind->count + 1) * sizeof *kind->entries));
    kind->entries[kind->count++] = entry;
}

static void load(const char *name)
{
    FILE *file = fopen(name, "r");
    char *line = NULL;
    size_t room = 0;
    if (!file)
        die(name);
    while (getdelim(&line, &room, '\0', file) > 0) {
        struct entry *entry = allocated(calloc(1, sizeof *entry));
        entry->path = allocated(strdup(line));
        if (fstatat(known_root, line, &entry->known, AT_SYMLINK_NOFOLLOW))
            die(line);
        add(&everything, entry);
        if (S_ISREG(entry->known.st_mode))
            add(&files, entry);
        else if (S_ISDIR(entry->known.st_mode))
            add(&directories, entry);
        else if (S_ISLNK(entry->known.st_mode))
            add(&links, entry);
    }
    free(line);
    fclose(file);
    errno = ENODATA;
    if (!everything.count)
        die(name);
}

static int opened(const char *directory)
{
    int file = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (file < 0)
        die(directory);
    return file;
}

/* Blocked, not handled: a handler would interrupt the call that is under way, and its EINTR look like an error. */
static void hold_off_signals(void)
{
    sigset_t ending;
    sigemptyset(&ending);
    sigaddset(&ending, SIGTERM);
    sigaddset(&ending, SIGINT);
    sigprocmask(SIG_BLOCK, &ending, NULL);
    struct sigaction action = {.sa_handler = on_bus_error, .sa_flags = SA_NODEFER};
    sigaction(SIGBUS, &action, NULL);
}

static bool is_told_to_end(void)
{
    sigset_t pending;
    sigpending(&pending);
    return sigismember(&pending, SIGTERM) || sigismember(&pending, SIGINT);
}

static void use(uint64_t operations_max, double end_ms)
{
    while (operations < operations_max && failures < FAILURES_MAX && now_ms() < end_ms && !is_told_to_end()) {
        size_t choice = below(sizeof choices / sizeof *choices);
        if (choices[choice].of->count)
            choices[choice].run();
    }
}

int main(int count, char **arguments)
{
    uint64_t operations_max = UINT64_MAX;
    double seconds = 1e9;
    int option;
    while ((option = getopt(count, arguments, "s:t:n:d")) != -1) {
        switch (option) {
        case 's': state = strtoull(optarg, NULL, 10); break;
        case 't': seconds = strtod(optarg, NULL); break;
        case 'n': operations_max = strtoull(optarg, NULL, 10); break;
        case 'd': dropping = true; break;
        default: return 2;
        }
    }
    if (count - optind != 3) {
        fprintf(stderr, "usage: random_reader [-s SEED] [-t SECONDS] [-n OPERATIONS] [-d] ROOT KNOWN LIST\n");
        return 2;
    }
    root = opened(arguments[optind]);
    known_root = opened(arguments[optind + 1]);
    load(arguments[optind + 2]);
    hold_off_signals();
    use(operations_max, now_ms() + seconds * 1e3);
    for (size_t slot = 0; slot < HELD_COUNT; slot++)
        let_go(&held[slot]);
    print_result();
    return failures ? 1 : 0;
}
