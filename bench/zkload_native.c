/*
 * zkload_native - load generator and checker for a coordination server.
 *
 * One thread, epoll, raw sockets, N connections with M requests outstanding on each. It knows
 * neither paths nor messages: a plan file (written by plan.py, which also describes its format)
 * holds encoded requests and the place of the correlation id in each. A connection sends its
 * ring of requests over and over, straight out of the plan's memory, patching only that id.
 *
 * Two dialects of replies are understood: duolog's native frames (a msgpack header) and
 * ZooKeeper's jute, so that both servers are measured by the same program.
 *
 * Every reply is checked while it is timed: order and value of the correlation id, error code 0,
 * lengths that fit exactly, every byte of the data, the Stat; zxids never go back on a
 * connection, versions never go back and rise with each write of its own. After the run every
 * znode is read again: as many versions as acknowledged writes, and the data of the last one.
 * The first thing that is wrong ends the run: it is in "error" of the JSON line on stdout, and
 * the exit status is 1 (2 where the run could not begin).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "replies.h"

#define SECOND 1000000000ull
#define READ_BYTES (256 * 1024)
#define MAX_FRAME_BYTES (200 * 1024)

enum dialect { NATIVE, JUTE };

struct node {
    struct text path, before, after; /* data as created; data of every set */
    uint64_t czxid;                  /* 0 until it is known */
    uint64_t sets;                   /* acknowledged */
};

struct op {
    uint8_t kind;
    uint32_t node;
    uint8_t *correlation; /* in the plan: patched in place */
    uint8_t *start;
    uint32_t size;
};

/* Requests that lie one behind another in memory. */
struct ops { struct op *op; uint32_t count; };

struct pending { uint32_t index, correlation; uint64_t sent_at; };

struct connection {
    int fd, number;
    struct ops ring;                /* main load */
    struct ops now;                 /* what the current phase sends */
    bool cyclic;
    uint32_t next;                  /* index in `now` of the request to queue next */
    uint8_t *unsent, *unsent_end;   /* queued bytes that the socket has not taken yet */
    bool waits_for_room;
    struct pending *pending;        /* a ring of `outstanding` */
    uint64_t queued, answered;
    uint32_t correlation;           /* of the last request */
    uint64_t zxid, own_mzxid;       /* highest seen in a reply; of its own last write */
    int64_t *versions;              /* of each node, as this connection knows them */
    uint8_t in[READ_BYTES];
    uint32_t filled;
};

static enum dialect dialect;
static struct node *nodes;
static uint32_t nodes_count;
static struct ops hello, setup, verify, farewell;
static struct connection *connections;
static uint32_t connections_count, outstanding = 64;
static double warmup_s = 1, seconds = 4, patience_s = 10;
static int poller;
static uint64_t window_start, window_end, counted;
static bool stopping;

/* ---------------------------------------------------------------- time, errors, the result */

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

__attribute__((noreturn, format(printf, 1, 2)))
static void cannot(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("zkload_native: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    exit(2);
}

__attribute__((noreturn, format(printf, 1, 2)))
static void wrong(const char *format, ...)
{
    char text[400];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    for (char *c = text; *c; c++)
        if (*c == '"' || *c == '\\' || *c < ' ')
            *c = '\'';
    printf("{\"ops\": %llu, \"error\": \"%s\"}\n", (unsigned long long)counted, text);
    fflush(stdout);
    exit(1);
}

static void *allocate(size_t count, size_t size)
{
    void *memory = calloc(count ? count : 1, size);
    if (!memory)
        cannot("out of memory");
    return memory;
}

/* Latencies in buckets whose width is at most 1/32 of their value. */
static uint64_t buckets[64 * 64];
static uint64_t slowest_ns;

static void count_latency(uint64_t ns)
{
    int power = ns < 64 ? 0 : 63 - __builtin_clzll(ns) - 5;
    buckets[(uint64_t)power * 64 + (ns >> power)]++;
    if (ns > slowest_ns)
        slowest_ns = ns;
}

static double percentile_us(double share)
{
    uint64_t wanted = (uint64_t)((double)counted * share), seen = 0;
    for (int i = 0; i < 64 * 64; i++) {
        seen += buckets[i];
        if (seen > wanted)
            return (double)((uint64_t)(i % 64) << (i / 64)) / 1e3;
    }
    return (double)slowest_ns / 1e3;
}

static void print_result(double took_s)
{
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    double cpu_s = (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec)
        + (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
    printf("{\"ops\": %llu, \"seconds\": %.3f, \"ops_s\": %.1f, \"p50_us\": %.1f, "
           "\"p99_us\": %.1f, \"max_us\": %.1f, \"connections\": %u, \"outstanding\": %u, "
           "\"client_cpu_s\": %.2f}\n",
           (unsigned long long)counted, took_s, (double)counted / took_s, percentile_us(0.5),
           percentile_us(0.99), (double)slowest_ns / 1e3, connections_count, outstanding, cpu_s);
}

/* ---------------------------------------------------------------- what a reply must say */

static bool same(struct text a, struct text b)
{
    return a.size == b.size && memcmp(a.at, b.at, a.size) == 0;
}

#define DEMAND(condition, ...) do { if (!(condition)) wrong(__VA_ARGS__); } while (0)

static void check_stat(struct connection *c, struct node *n, const struct reply *r, uint32_t data_size)
{
    const char *path = (const char *)n->path.at;
    int size = (int)n->path.size;
    uint64_t czxid = (uint64_t)r->stat[CZXID], mzxid = (uint64_t)r->stat[MZXID];
    if (n->czxid == 0)
        n->czxid = czxid;
    DEMAND(czxid == n->czxid && czxid > 0, "%.*s: czxid changed to %llx", size, path,
           (unsigned long long)czxid);
    DEMAND(czxid <= mzxid && mzxid <= r->zxid, "%.*s: mzxid %llx is not between czxid and %llx",
           size, path, (unsigned long long)mzxid, (unsigned long long)r->zxid);
    DEMAND(r->stat[DATA_LENGTH] == (int64_t)data_size, "%.*s: the Stat says %lld bytes of data, not %u",
           size, path, (long long)r->stat[DATA_LENGTH], data_size);
    DEMAND((r->stat[VERSION] == 0) == (czxid == mzxid), "%.*s: version %lld does not fit its zxids",
           size, path, (long long)r->stat[VERSION]);
    DEMAND(r->stat[VERSION] >= c->versions[n - nodes], "%.*s: version %lld after %lld", size, path,
           (long long)r->stat[VERSION], (long long)c->versions[n - nodes]);
}

static void check_reply(struct connection *c, const struct op *op, const struct reply *r)
{
    struct node *n = &nodes[op->node];
    const char *path = (const char *)n->path.at;
    int size = (int)n->path.size;
    DEMAND(r->zxid >= c->zxid, "zxid %llx after %llx on one connection", (unsigned long long)r->zxid,
           (unsigned long long)c->zxid);
    c->zxid = r->zxid;
    switch ((enum kind)op->kind) {
    case CREATE:
        DEMAND(same(r->path, n->path), "%.*s: created as %.*s", size, path, (int)r->path.size,
               (const char *)r->path.at);
        break;
    case FINAL_GET:
        DEMAND(r->stat[VERSION] == (int64_t)n->sets, "%.*s: version %lld after %llu acknowledged sets",
               size, path, (long long)r->stat[VERSION], (unsigned long long)n->sets);
        /* fall through */
    case GET:
        DEMAND(same(r->data, r->stat[VERSION] == 0 ? n->before : n->after),
               "%.*s: wrong data (%u bytes) at version %lld", size, path, r->data.size,
               (long long)r->stat[VERSION]);
        check_stat(c, n, r, r->data.size);
        c->versions[op->node] = r->stat[VERSION];
        break;
    case SET:
        check_stat(c, n, r, n->after.size);
        DEMAND(r->stat[VERSION] > c->versions[op->node], "%.*s: version %lld did not rise", size, path,
               (long long)r->stat[VERSION]);
        DEMAND((uint64_t)r->stat[MZXID] > c->own_mzxid, "%.*s: mzxid %llx is not above that of the set before",
               size, path, (unsigned long long)r->stat[MZXID]);
        c->versions[op->node] = r->stat[VERSION];
        c->own_mzxid = (uint64_t)r->stat[MZXID];
        n->sets++;
        break;
    default:
        break;
    }
}

static void on_frame(struct connection *c, const uint8_t *frame, uint32_t size, uint64_t now)
{
    DEMAND(c->answered < c->queued, "connection %d: a frame that nobody asked for", c->number);
    const struct pending *p = &c->pending[c->answered % outstanding];
    const struct op *op = &c->now.op[p->index];
    struct reply r = {.due = p->correlation};
    const char *problem = dialect == NATIVE ? read_native(frame, size, op->kind, &r)
                                            : read_jute(frame, size, op->kind, &r);
    DEMAND(!problem, "connection %d: malformed reply: %s", c->number, problem);
    DEMAND(r.correlation == r.due, "connection %d: reply to %u where %u is due", c->number,
           r.correlation, r.due);
    DEMAND(r.error == 0, "connection %d: error code %lld on %.*s", c->number, (long long)r.error,
           (int)nodes[op->node].path.size, (const char *)nodes[op->node].path.at);
    check_reply(c, op, &r);
    c->answered++;
    if (c->cyclic && now >= window_start && now < window_end) {
        counted++;
        count_latency(now - p->sent_at);
    }
}

/* ---------------------------------------------------------------- sockets */

static bool idle(const struct connection *c)
{
    bool no_more = c->cyclic ? stopping : c->next == c->now.count;
    return no_more && c->answered == c->queued;
}

static void watch(struct connection *c, bool for_room)
{
    if (c->waits_for_room == for_room)
        return;
    struct epoll_event event = {.events = EPOLLIN | (for_room ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &event);
    c->waits_for_room = for_room;
}

/* Queue requests up to the end of the ring of bytes; what is queued is never patched again
 * before the socket has taken it, because the ring restarts only when nothing is unsent. */
static void queue(struct connection *c, uint32_t window, uint64_t now)
{
    while (c->next < c->now.count && c->queued - c->answered < window && !(c->cyclic && stopping)) {
        struct op *op = &c->now.op[c->next];
        uint32_t id = htonl(++c->correlation);
        if (op->correlation)
            memcpy(op->correlation, &id, 4);
        c->pending[c->queued % outstanding] = (struct pending){c->next, c->correlation, now};
        if (c->unsent == c->unsent_end)
            c->unsent = op->start;
        c->unsent_end = op->start + op->size;
        c->queued++;
        c->next++;
    }
}

static void send_more(struct connection *c, uint32_t window)
{
    uint64_t now = now_ns();
    for (;;) {
        queue(c, window, now);
        if (c->unsent < c->unsent_end) {
            ssize_t sent = send(c->fd, c->unsent, (size_t)(c->unsent_end - c->unsent), MSG_NOSIGNAL);
            if (sent < 0 && (errno == EAGAIN || errno == EINTR)) {
                watch(c, true);
                return;
            }
            DEMAND(sent >= 0, "connection %d lost: %s", c->number, strerror(errno));
            c->unsent += sent;
            continue;
        }
        if (!c->cyclic || stopping || c->next < c->now.count)
            break;
        c->next = 0;
    }
    watch(c, false);
}

static void receive(struct connection *c)
{
    ssize_t got = recv(c->fd, c->in + c->filled, READ_BYTES - c->filled, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got <= 0 && c->now.count && c->now.op->kind == CLOSE && idle(c)) {
        epoll_ctl(poller, EPOLL_CTL_DEL, c->fd, NULL);
        return;
    }
    DEMAND(got > 0, "connection %d lost: %s", c->number, got ? strerror(errno) : "end of stream");
    uint64_t now = now_ns();
    uint32_t at = 0, end = c->filled + (uint32_t)got;
    while (end - at >= 4) {
        struct cursor prefix = {c->in + at, c->in + end, NULL};
        uint64_t size = take_number(&prefix, 4);
        DEMAND(size <= MAX_FRAME_BYTES, "connection %d: a frame of %llu bytes", c->number,
               (unsigned long long)size);
        if (end - at - 4 < size)
            break;
        on_frame(c, c->in + at + 4, (uint32_t)size, now);
        at += 4 + (uint32_t)size;
    }
    memmove(c->in, c->in + at, end - at);
    c->filled = end - at;
}

static void open_connection(struct connection *c, struct sockaddr_in *address)
{
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)address, sizeof *address) < 0)
        cannot("connect: %s", strerror(errno));
    int on = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    c->pending = allocate(outstanding, sizeof *c->pending);
    c->versions = allocate(nodes_count, sizeof *c->versions);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &event);
}

/* Run the phase that has been given to the connections until all of them are idle. */
static void run(uint32_t window)
{
    uint64_t last_reply = now_ns();
    for (uint32_t i = 0; i < connections_count; i++)
        send_more(&connections[i], window);
    for (;;) {
        bool all_idle = true;
        for (uint32_t i = 0; i < connections_count && all_idle; i++)
            all_idle = idle(&connections[i]);
        if (all_idle)
            return;
        struct epoll_event events[64];
        int ready = epoll_wait(poller, events, 64, 10);
        uint64_t now = now_ns();
        if (window_end && now >= window_end)
            stopping = true;
        if (ready > 0)
            last_reply = now;
        DEMAND(now - last_reply < (uint64_t)(patience_s * (double)SECOND), "no reply for %.1f s", patience_s);
        for (int i = 0; i < ready; i++) {
            struct connection *c = events[i].data.ptr;
            if (events[i].events & ~(uint32_t)EPOLLOUT)
                receive(c);
            send_more(c, window);
        }
    }
}

static void give(struct connection *c, struct ops ops, bool cyclic)
{
    c->now = ops;
    c->cyclic = cyclic;
    c->next = 0;
    c->unsent = c->unsent_end = NULL;
}

/* ---------------------------------------------------------------- the plan, the run */

static struct text plan_text(struct cursor *c)
{
    uint32_t size = (uint32_t)take_number(c, 4);
    return (struct text){take(c, size), size};
}

/* Requests are copied out one behind another, so that a run of them is sent with one call. */
static struct ops plan_ops(struct cursor *c)
{
    struct ops ops = {NULL, (uint32_t)take_number(c, 4)};
    uint8_t *bytes = allocate((size_t)(c->end - c->at), 1);
    ops.op = allocate(ops.count, sizeof *ops.op);
    for (uint32_t i = 0; i < ops.count; i++) {
        struct op *op = &ops.op[i];
        op->kind = (uint8_t)take_number(c, 1);
        op->node = (uint32_t)take_number(c, 4);
        uint32_t correlation_at = (uint32_t)take_number(c, 4);
        struct text request = plan_text(c);
        if (c->problem || op->kind > CLOSE || op->node >= nodes_count)
            cannot("the plan is damaged");
        op->start = memcpy(bytes, request.at, request.size);
        op->size = request.size;
        op->correlation = correlation_at == UINT32_MAX ? NULL : bytes + correlation_at;
        bytes += request.size;
    }
    return ops;
}

static struct ops copy_of(struct ops ops)
{
    struct ops copy = {allocate(ops.count, sizeof *copy.op), ops.count};
    size_t size = 0;
    for (uint32_t i = 0; i < ops.count; i++)
        size += ops.op[i].size;
    uint8_t *bytes = allocate(size, 1);
    memcpy(copy.op, ops.op, ops.count * sizeof *copy.op);
    for (uint32_t i = 0; i < ops.count; i++) {
        struct op *op = &copy.op[i];
        op->correlation = op->correlation ? bytes + (op->correlation - op->start) : NULL;
        op->start = memcpy(bytes, op->start, op->size);
        bytes += op->size;
    }
    return copy;
}

static void read_plan(const char *name)
{
    FILE *file = fopen(name, "rb");
    struct stat status;
    if (!file || fstat(fileno(file), &status) < 0)
        cannot("%s: %s", name, strerror(errno));
    uint8_t *bytes = allocate((size_t)status.st_size, 1);
    if (fread(bytes, 1, (size_t)status.st_size, file) != (size_t)status.st_size)
        cannot("%s: %s", name, strerror(errno));
    fclose(file);
    struct cursor c = {bytes, bytes + status.st_size, NULL};
    const uint8_t *magic = take(&c, 4);
    if (!magic || memcmp(magic, "DZL1", 4) != 0)
        cannot("%s is no plan", name);
    dialect = take_number(&c, 1) == 0 ? NATIVE : JUTE;
    nodes_count = (uint32_t)take_number(&c, 4);
    nodes = allocate(nodes_count, sizeof *nodes);
    for (uint32_t i = 0; i < nodes_count && !c.problem; i++) {
        nodes[i].path = plan_text(&c);
        nodes[i].before = plan_text(&c);
        nodes[i].after = plan_text(&c);
    }
    hello = plan_ops(&c);
    setup = plan_ops(&c);
    verify = plan_ops(&c);
    farewell = plan_ops(&c);
    connections_count = (uint32_t)take_number(&c, 4);
    if (c.problem || connections_count == 0 || connections_count > 10000)
        cannot("the plan is damaged");
    connections = allocate(connections_count, sizeof *connections);
    for (uint32_t i = 0; i < connections_count; i++)
        connections[i].ring = plan_ops(&c);
    if (c.at != c.end)
        cannot("the plan is damaged");
}

static double number(const char *text)
{
    char *end;
    double value = strtod(text, &end);
    if (*end || end == text || value < 0)
        cannot("'%s' is no number", text);
    return value;
}

static void on_all(struct ops ops, uint32_t window)
{
    for (uint32_t i = 0; i < connections_count; i++)
        give(&connections[i], copy_of(ops), false);
    run(window);
}

static void on_first(struct ops ops)
{
    for (uint32_t i = 0; i < connections_count; i++)
        give(&connections[i], i == 0 ? ops : (struct ops){NULL, 0}, false);
    run(outstanding);
}

int main(int count, char **arguments)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    const char *plan = NULL;
    for (int i = 1; i + 1 < count; i += 2) {
        const char *name = arguments[i], *value = arguments[i + 1];
        if (!strcmp(name, "--plan"))
            plan = value;
        else if (!strcmp(name, "--host") && inet_pton(AF_INET, value, &address.sin_addr) == 1)
            continue;
        else if (!strcmp(name, "--port"))
            address.sin_port = htons((uint16_t)number(value));
        else if (!strcmp(name, "--outstanding"))
            outstanding = (uint32_t)number(value);
        else if (!strcmp(name, "--warmup"))
            warmup_s = number(value);
        else if (!strcmp(name, "--seconds"))
            seconds = number(value);
        else if (!strcmp(name, "--patience"))
            patience_s = number(value);
        else
            cannot("what is %s %s?", name, value);
    }
    if (count % 2 == 0 || !plan || !address.sin_port || !outstanding || seconds <= 0)
        cannot("usage: --plan FILE --port N [--host 127.0.0.1] [--outstanding 64] [--warmup 1] "
               "[--seconds 4] [--patience 10]");
    read_plan(plan);
    poller = epoll_create1(EPOLL_CLOEXEC);
    for (uint32_t i = 0; i < connections_count; i++) {
        connections[i].number = (int)i;
        open_connection(&connections[i], &address);
    }
    on_all(hello, 1);
    on_first(setup);
    for (uint32_t i = 0; i < connections_count; i++)
        give(&connections[i], connections[i].ring, true);
    window_start = now_ns() + (uint64_t)(warmup_s * (double)SECOND);
    window_end = window_start + (uint64_t)(seconds * (double)SECOND);
    run(outstanding);
    window_end = 0;
    on_first(verify);
    on_all(farewell, 1);
    print_result(seconds);
    return 0;
}
