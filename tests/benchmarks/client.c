/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The one small client that all ways are measured with. It makes calls whose bytes it is given, and notes how long each
 * one took; what it costs itself is measured with an echo in its place.
 *
 *     client calls BLOCKS CALLS        blocks of CALLS calls of one way, the ways by turns
 *     client flood BLOCKS CALLS CONNECTIONS    the same with so many connections, as fast as they are answered
 *     client quiet CALLS PAUSE CONNECTIONS UID UID    calls of the first way by the first user, PAUSE µs between them,
 *         while so many connections of the second user make calls without a pause
 *
 * Standard input says the ways, one a line: NAME varlink|dbus|echo UID SOCKET REQUEST, the user who connects and the
 * request's bytes in hexadecimal.
 * Standard output gets a line for each block: NAME and nanoseconds, of each call or, for flood, of all of them.
 */
#define _GNU_SOURCE
#include <err.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { WAYS = 32, REQUEST = 4096, REPLY = 8 << 20, FDS = 256, CONNECTIONS = 4096 };
enum framing { VARLINK, DBUS, ECHO };

struct way {
    char name[128], socket[108];
    enum framing framing;
    uid_t uid;
    unsigned char request[REQUEST];
    size_t size;
};

static struct way ways[WAYS];
static int way_count;
static unsigned char reply[REPLY];
/* What came with replies. A shell whose terminal is closed at once may never notice. */
static int fds[FDS];
static unsigned fd_count;

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static void read_ways(void) {
    char name[128], framing[16], socket[108], request[2 * REQUEST + 1];
    unsigned uid;
    while (scanf("%127s %15s %u %107s %8192s", name, framing, &uid, socket, request) == 5) {
        struct way *way = &ways[way_count++];
        if (way_count == WAYS)
            errx(1, "too many ways");
        strcpy(way->name, name);
        strcpy(way->socket, socket);
        way->uid = uid;
        way->framing = !strcmp(framing, "varlink") ? VARLINK : !strcmp(framing, "dbus") ? DBUS : ECHO;
        for (way->size = 0; request[2 * way->size]; way->size++)
            sscanf(request + 2 * way->size, "%2hhx", &way->request[way->size]);
    }
}

static void send_all(int fd, const void *data, size_t size) {
    while (size > 0) {
        ssize_t sent = send(fd, data, size, MSG_NOSIGNAL);
        if (sent < 0)
            err(1, "send");
        data = (const char *)data + sent;
        size -= (size_t)sent;
    }
}

static size_t receive(int fd, size_t have) {
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(16 * sizeof(int))];
    } control;
    struct iovec bytes = {reply + have, REPLY - have};
    struct msghdr message = {.msg_iov = &bytes, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    ssize_t size = recvmsg(fd, &message, MSG_CMSG_CLOEXEC);
    if (size <= 0)
        err(1, "the connection ended");
    for (struct cmsghdr *part = CMSG_FIRSTHDR(&message); part; part = CMSG_NXTHDR(&message, part))
        for (size_t at = 0; part->cmsg_type == SCM_RIGHTS && CMSG_LEN(at + sizeof(int)) <= part->cmsg_len; at += sizeof(int)) {
            if (fd_count >= FDS)
                close(fds[fd_count % FDS]);
            memcpy(&fds[fd_count++ % FDS], CMSG_DATA(part) + at, sizeof(int));
        }
    return have + (size_t)size;
}

static uint32_t number_at(size_t at) {
    uint32_t number;
    memcpy(&number, reply + at, sizeof number);
    return number;
}

/* Whether what was read is a whole answer; of D-Bus, signals before it are taken out. */
static int is_whole(enum framing framing, size_t *have) {
    if (framing != DBUS) {
        if (*have == 0 || reply[*have - 1])
            return 0;
        unsigned char *last = *have > 1 ? memrchr(reply, 0, *have - 1) : NULL;
        last = last ? last + 1 : reply;
        if (framing == VARLINK && !strncmp((char *)last, "{\"error\"", 8))
            errx(1, "%s", (char *)last);
        return framing == ECHO || !strstr((char *)last, "\"continues\":true");
    }
    while (*have >= 16) {
        size_t size = 16 + ((number_at(12) + 7u) & ~7u) + number_at(4);
        if (*have < size)
            return 0;
        if (reply[1] == 3)
            errx(1, "a D-Bus error: %.*s", (int)size, (char *)reply + size - number_at(4) + 4);
        if (reply[1] == 2)
            return 1;
        memmove(reply, reply + size, *have -= size);
    }
    return 0;
}

static void call(int fd, struct way *way) {
    size_t have = 0;
    send_all(fd, way->request, way->size);
    do
        have = receive(fd, have);
    while (!is_whole(way->framing, &have));
}

static void say(int fd, const char *line, const char *expected) {
    size_t have = 0;
    send_all(fd, line, strlen(line));
    do
        have = receive(fd, have);
    while (reply[have - 1] != '\n');
    if (strncmp((char *)reply, expected, strlen(expected)))
        errx(1, "the bus says %.*s", (int)have, (char *)reply);
}

/* The D-Bus specification, "Authentication Protocol". */
static void enter_bus(int fd) {
    static struct way hello = {.framing = DBUS};
    static const char destination[] = "org.freedesktop.DBus", path[] = "/org/freedesktop/DBus", member[] = "Hello";
    char line[64] = "AUTH EXTERNAL ", *end = line + strlen(line), uid[16];
    snprintf(uid, sizeof uid, "%u", (unsigned)geteuid());
    for (char *digit = uid; *digit; digit++)
        end += sprintf(end, "3%c", *digit);
    strcpy(end, "\r\n");
    send_all(fd, "", 1);
    say(fd, line, "OK");
    say(fd, "NEGOTIATE_UNIX_FD\r\n", "AGREE_UNIX_FD");
    send_all(fd, "BEGIN\r\n", 7);
    unsigned char *m = hello.request;
    memcpy(m, "l\1\0\1\0\0\0\0\1\0\0\0", 12);
    size_t at = 16;
    const struct { char code, type; const char *text; } fields[] = {{1, 'o', path}, {2, 's', destination}, {3, 's', member}, {6, 's', destination}};
    for (unsigned i = 0; i < 4; i++) {
        uint32_t length = (uint32_t)strlen(fields[i].text);
        at = (at + 7) & ~(size_t)7;
        memcpy(m + at, (char[]){fields[i].code, 1, fields[i].type, 0}, 4);
        memcpy(m + at + 4, &length, 4);
        memcpy(m + at + 8, fields[i].text, length + 1);
        at += 8 + length + 1;
    }
    uint32_t size = (uint32_t)(at - 16);
    memcpy(m + 12, &size, 4);
    hello.size = (at + 7) & ~(size_t)7;
    call(fd, &hello);
}

static void echo(int fd) {
    char bytes[REQUEST];
    ssize_t size;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    while ((size = recv(fd, bytes, sizeof bytes, 0)) > 0)
        send_all(fd, bytes, (size_t)size);
    _exit(0);
}

static int open_way(struct way *way) {
    if (way->framing == ECHO) {
        int ends[2];
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
            err(1, "socketpair");
        if (fork() == 0) {
            close(ends[0]);
            echo(ends[1]);
        }
        close(ends[1]);
        return ends[0];
    }
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    uid_t uid = geteuid();
    strcpy(address.sun_path, way->socket);
    if (way->uid && seteuid(way->uid) < 0)
        err(1, "seteuid");
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        err(1, "%s", way->socket);
    if (way->framing == DBUS)
        enter_bus(fd);
    if (way->uid && seteuid(uid) < 0)
        err(1, "seteuid");
    return fd;
}

static void calls(int blocks, int count) {
    int connections[WAYS];
    uint64_t *times = calloc((size_t)count, sizeof *times);
    for (int i = 0; i < way_count; i++)
        connections[i] = open_way(&ways[i]);
    for (int block = 0; block < blocks; block++)
        for (int i = 0; i < way_count; i++) {
            /* Another one begins each time, so that none always has the same one before it. */
            struct way *way = &ways[(i + block) % way_count];
            int fd = connections[(i + block) % way_count];
            for (int n = 0; n < count; n++) {
                uint64_t begin = now();
                call(fd, way);
                times[n] = now() - begin;
            }
            printf("%s", way->name);
            for (int n = 0; n < count; n++)
                printf(" %llu", (unsigned long long)times[n]);
            printf("\n");
        }
}

static uint64_t flood(struct way *way, int count, int connections) {
    struct pollfd polled[CONNECTIONS];
    for (int i = 0; i < connections; i++)
        polled[i] = (struct pollfd){.fd = open_way(way), .events = POLLIN};
    uint64_t begin = now();
    for (int i = 0; i < connections; i++)
        send_all(polled[i].fd, way->request, way->size);
    for (int done = 0; count == 0 || done < count;) {
        if (poll(polled, (nfds_t)connections, -1) < 0)
            err(1, "poll");
        for (int i = 0; i < connections; i++)
            if (polled[i].revents) {
                size_t have = 0;
                do
                    have = receive(polled[i].fd, have);
                while (!is_whole(way->framing, &have));
                send_all(polled[i].fd, way->request, way->size);
                done++;
            }
    }
    uint64_t taken = now() - begin;
    for (int i = 0; i < connections; i++)
        close(polled[i].fd);
    return taken;
}

static void quiet(int count, int pause, int connections, uid_t uid, uid_t busy_uid) {
    for (int i = 0; i < way_count; i++) {
        pid_t busy = connections > 0 ? fork() : -1;
        if (busy == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            if (setresuid(busy_uid, busy_uid, busy_uid) < 0)
                err(1, "setresuid");
            flood(&ways[i], 0, connections);
        }
        pid_t caller = fork();
        if (caller == 0) {
            if (setresuid(uid, uid, uid) < 0)
                err(1, "setresuid");
            usleep(200000);
            int fd = open_way(&ways[i]);
            printf("%s", ways[i].name);
            for (int n = 0; n < count; n++) {
                usleep((useconds_t)pause);
                uint64_t begin = now();
                call(fd, &ways[i]);
                printf(" %llu", (unsigned long long)(now() - begin));
            }
            printf("\n");
            fflush(stdout);
            _exit(0);
        }
        int status;
        waitpid(caller, &status, 0);
        if (busy > 0) {
            kill(busy, SIGKILL);
            waitpid(busy, NULL, 0);
        }
        if (status)
            errx(1, "the quiet client failed");
    }
}

int main(int count, char **arguments) {
    int numbers[5] = {0};
    for (int i = 2; i < count && i < 7; i++)
        numbers[i - 2] = atoi(arguments[i]);
    const char *mode = count > 1 ? arguments[1] : "";
    read_ways();
    if (!strcmp(mode, "calls"))
        calls(numbers[0], numbers[1]);
    else if (!strcmp(mode, "flood") && numbers[2] <= CONNECTIONS)
        for (int block = 0; block < numbers[0]; block++)
            for (int i = 0; i < way_count; i++) {
                struct way *way = &ways[(i + block) % way_count];
                printf("%s %llu\n", way->name, (unsigned long long)flood(way, numbers[1], numbers[2]));
            }
    else if (!strcmp(mode, "quiet"))
        quiet(numbers[0], numbers[1], numbers[2], (uid_t)numbers[3], (uid_t)numbers[4]);
    else
        errx(2, "see the first lines of client.c");
    /* Shells that were opened last have to notice that they are closed. */
    usleep(fd_count ? 100000 : 0);
    return 0;
}
