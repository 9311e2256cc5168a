/*
 * The bytes of a reply, in duolog's native frames and in ZooKeeper's jute.
 *
 * Turns one frame into a `struct reply`, or says what is malformed about it: a length that does
 * not fit, a field of another type, bytes left over. What the values must be is not its business.
 */
#ifndef REPLIES_H
#define REPLIES_H
#include <stdint.h>
#include <stdlib.h>

#define STAT_FIELDS 11

enum kind { VERSIONS, CONNECT, CREATE, GET, SET, FINAL_GET, CLOSE };

/* Fields of a native Stat, in its order; a jute Stat is read into the same places. */
enum { CZXID, MZXID, CTIME, MTIME, VERSION, CVERSION, AVERSION, OWNER, DATA_LENGTH, CHILDREN, PZXID };

struct text { const uint8_t *at; uint32_t size; };

struct reply {
    uint32_t due, correlation; /* the id that must come, the one that came */
    int64_t error;
    uint64_t zxid;
    int64_t stat[STAT_FIELDS];
    struct text data, path;
};

/* A cursor; once something does not fit, `problem` says what, and all further reads give 0. */
struct cursor { const uint8_t *at, *end; const char *problem; };

static const uint8_t *take(struct cursor *c, uint64_t size)
{
    if (c->problem || size > (uint64_t)(c->end - c->at)) {
        if (!c->problem)
            c->problem = "it ends too early";
        return NULL;
    }
    const uint8_t *at = c->at;
    c->at += size;
    return at;
}

static uint64_t take_number(struct cursor *c, int bytes)
{
    const uint8_t *at = take(c, (uint64_t)bytes);
    uint64_t value = 0;
    for (int i = 0; at && i < bytes; i++)
        value = value << 8 | at[i];
    return value;
}

static int64_t take_signed(struct cursor *c, int bytes)
{
    int unused = 64 - 8 * bytes;
    return (int64_t)(take_number(c, bytes) << unused) >> unused;
}

static int64_t msgpack_integer(struct cursor *c)
{
    uint8_t tag = (uint8_t)take_number(c, 1);
    if (tag < 0x80)
        return tag;
    if (tag >= 0xe0)
        return (int8_t)tag;
    if (tag >= 0xcc && tag <= 0xcf)
        return (int64_t)take_number(c, 1 << (tag - 0xcc));
    if (tag >= 0xd0 && tag <= 0xd3)
        return take_signed(c, 1 << (tag - 0xd0));
    if (!c->problem)
        c->problem = "no integer where one belongs";
    return 0;
}

static uint32_t msgpack_array(struct cursor *c)
{
    uint8_t tag = (uint8_t)take_number(c, 1);
    if (tag >= 0x90 && tag <= 0x9f)
        return tag & 0x0f;
    if (tag == 0xdc)
        return (uint32_t)take_number(c, 2);
    if (!c->problem)
        c->problem = "no array where one belongs";
    return 0;
}

static void expect_array(struct cursor *c, uint32_t count)
{
    if (msgpack_array(c) != count && !c->problem)
        c->problem = "an array of another length than the message has fields";
}

/* A string or small binary. */
static struct text msgpack_text(struct cursor *c)
{
    uint8_t tag = (uint8_t)take_number(c, 1);
    uint64_t size = 0;
    if (tag >= 0xa0 && tag <= 0xbf)
        size = tag & 0x1f;
    else if (tag == 0xc4 || tag == 0xd9)
        size = take_number(c, 1);
    else if (tag == 0xc5 || tag == 0xda)
        size = take_number(c, 2);
    else if (!c->problem)
        c->problem = "no string where one belongs";
    const uint8_t *at = take(c, size);
    return (struct text){at, at ? (uint32_t)size : 0};
}

static void msgpack_boolean(struct cursor *c)
{
    uint8_t tag = (uint8_t)take_number(c, 1);
    if (tag != 0xc2 && tag != 0xc3 && !c->problem)
        c->problem = "no boolean where one belongs";
}

/* Array of arrays of texts and integers, as ApiVersions has them. */
static void msgpack_skip_rows(struct cursor *c)
{
    for (uint32_t rows = msgpack_array(c); rows && !c->problem; rows--)
        for (uint32_t columns = msgpack_array(c); columns && !c->problem; columns--) {
            bool is_text = c->at < c->end && *c->at >= 0xa0 && *c->at <= 0xbf;
            if (is_text)
                msgpack_text(c);
            else
                msgpack_integer(c);
        }
}

static void native_stat(struct cursor *c, struct reply *r)
{
    expect_array(c, STAT_FIELDS);
    for (int i = 0; i < STAT_FIELDS; i++)
        r->stat[i] = msgpack_integer(c);
}

static void native_fields(struct cursor *c, enum kind kind, struct reply *r)
{
    switch (kind) {
    case VERSIONS:
        if (msgpack_text(c).size == 0 && !c->problem)
            c->problem = "the service has no name";
        msgpack_text(c);
        msgpack_skip_rows(c);
        msgpack_skip_rows(c);
        msgpack_integer(c);
        break;
    case CONNECT:
        if (msgpack_integer(c) <= 0 && !c->problem)
            c->problem = "the session has no timeout";
        if (msgpack_integer(c) == 0 && !c->problem)
            c->problem = "the session has no id";
        if (msgpack_text(c).size != 16 && !c->problem)
            c->problem = "the session's password is not 16 bytes";
        msgpack_boolean(c);
        msgpack_integer(c);
        break;
    case CREATE:
        r->path = msgpack_text(c);
        native_stat(c, r);
        break;
    case GET:
    case FINAL_GET:
        native_stat(c, r);
        r->data.size = (uint32_t)msgpack_integer(c);
        break;
    case SET:
        native_stat(c, r);
        break;
    case CLOSE:
        break;
    }
}

static const uint32_t native_field_count[] = {
    [VERSIONS] = 5, [CONNECT] = 5, [CREATE] = 2, [GET] = 2, [SET] = 1, [FINAL_GET] = 2, [CLOSE] = 0,
};

/* frame = header_length header attachments (the length before it is already cut off) */
static const char *read_native(const uint8_t *frame, uint32_t size, enum kind kind, struct reply *r)
{
    struct cursor c = {frame, frame + size, NULL};
    uint64_t header_size = take_number(&c, 4);
    const uint8_t *header = take(&c, header_size);
    if (!header)
        return "the header is longer than the frame";
    const uint8_t *attachments = c.at;
    c = (struct cursor){header, header + header_size, NULL};
    uint32_t count = msgpack_array(&c);
    if (take_number(&c, 1) != 0xce && !c.problem)
        c.problem = "the correlation id is not in five bytes";
    r->correlation = (uint32_t)take_number(&c, 4);
    r->error = msgpack_integer(&c);
    r->zxid = (uint64_t)msgpack_integer(&c);
    if (c.problem || r->correlation != r->due || r->error != 0)
        return c.problem;
    if (count != 3 + native_field_count[kind])
        return "the response has another number of fields than its message";
    native_fields(&c, kind, r);
    if (!c.problem && c.at != c.end)
        return "bytes after the last field of the header";
    if (!c.problem && (uint64_t)(frame + size - attachments) != r->data.size)
        return "the attachments are not as long as the header says";
    r->data.at = attachments;
    return c.problem;
}

static struct text jute_buffer(struct cursor *c)
{
    int64_t size = take_signed(c, 4);
    const uint8_t *at = take(c, size < 0 ? 0 : (uint64_t)size);
    return (struct text){at, at && size > 0 ? (uint32_t)size : 0};
}

static void jute_stat(struct cursor *c, struct reply *r)
{
    static const int widths[STAT_FIELDS] = {8, 8, 8, 8, 4, 4, 4, 8, 4, 4, 8};
    for (int i = 0; i < STAT_FIELDS; i++)
        r->stat[i] = take_signed(c, widths[i]);
}

static const char *read_jute(const uint8_t *frame, uint32_t size, enum kind kind, struct reply *r)
{
    struct cursor c = {frame, frame + size, NULL};
    if (kind == CONNECT) { /* the one response without a header */
        take(&c, 4);
        if (take_signed(&c, 4) <= 0 && !c.problem)
            c.problem = "the session has no timeout";
        if (take_signed(&c, 8) == 0 && !c.problem)
            c.problem = "the session has no id";
        if (jute_buffer(&c).size != 16 && !c.problem)
            c.problem = "the session's password is not 16 bytes";
        r->correlation = r->due;
        return c.problem;
    }
    r->correlation = (uint32_t)take_number(&c, 4);
    r->zxid = take_number(&c, 8);
    r->error = take_signed(&c, 4);
    if (c.problem || r->correlation != r->due || r->error != 0)
        return c.problem;
    if (kind == CREATE)
        r->path = jute_buffer(&c);
    if (kind == GET || kind == FINAL_GET)
        r->data = jute_buffer(&c);
    if (kind == GET || kind == FINAL_GET || kind == SET)
        jute_stat(&c, r);
    if (!c.problem && c.at != c.end)
        return "bytes after the last field";
    return c.problem;
}

#endif
