/* A load generator for HTTP/1.1: one request, sent again and again over kept-alive connections, by one thread.
 *
 * Closed loop (no --rate): every connection sends as soon as its last answer is complete. What is completed within the
 * measured seconds counts.
 * Open loop (--rate): requests are due at times that do not depend on the answers. One that finds no idle connection
 * opens one, and waits when all are in use; its latency counts from the time it was due, not from when it was sent, so
 * a server that stalls cannot hide how long callers would have waited. What was due within the measured seconds counts.
 *
 * Always ends: after warm-up, the measured seconds, and at most --timeout-ms for what is then still unanswered. Prints
 * one line of JSON. Knows nothing of what is in a request; of an answer only its framing, its status and, where asked,
 * how long or what a body of status 200 must be. 127.0.0.1 only. Linux, C11: cc -O2 -o load load.c -lm
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { READ_BYTES = 256 * 1024, LINE_BYTES = 1024, EVENTS = 256, STATUSES = 600 };
static const int64_t SECOND = 1000000000, MILLISECOND = 1000000;
static const int64_t TICK = 5 * 1000000;        /* how often timeouts are looked for */
static const int64_t RETRY = 10 * 1000000;      /* after a refused connection */

/* --- what was asked for ------------------------------------------------------------------------------------------ */

struct bytes { char *data; size_t size; };

static struct {
    int port, connections;
    double seconds, warm_up_s, rate, deadline_ms, timeout_ms;
    bool poisson;
    uint64_t seed;
    long expected_bytes;                        /* of a 200's body; -1: any */
    struct bytes request, expected;
} ask = {.connections = 1, .seconds = 1, .timeout_ms = 10000, .seed = 1, .expected_bytes = -1};

/* --- one answer, read in pieces ---------------------------------------------------------------------------------- */

enum part { HEAD, BODY, BODY_TO_END, CHUNK_SIZE, CHUNK, CHUNK_END, TRAILER, DONE };

struct answer {
    enum part part;
    int status;                                 /* 0: its first line is not read yet */
    bool chunked, closes, differs;
    int64_t length, left, body_bytes;           /* length -1: none was told */
    char line[LINE_BYTES];
    size_t line_bytes;
};

static void expect_answer(struct answer *a) {
    a->part = HEAD;
    a->status = 0;
    a->chunked = a->closes = a->differs = false;
    a->length = -1;
    a->body_bytes = 0;
    a->line_bytes = 0;
}

static bool read_number(const char *text, int base, int64_t *number) {
    char *end;
    errno = 0;
    *number = strtoll(text, &end, base);
    return end != text && errno == 0 && *number >= 0 && strchr(" \t;\r", *end) != NULL;
}

static bool read_header(struct answer *a) {
    char *colon = strchr(a->line, ':');
    if (colon == NULL) return false;
    *colon = 0;
    char *value = colon + 1 + strspn(colon + 1, " \t");
    if (strcasecmp(a->line, "content-length") == 0) return read_number(value, 10, &a->length);
    if (strcasecmp(a->line, "transfer-encoding") == 0) a->chunked = strcasestr(value, "chunked") != NULL;
    if (strcasecmp(a->line, "connection") == 0) {
        if (strcasestr(value, "close") != NULL) a->closes = true;
        if (strcasestr(value, "keep-alive") != NULL) a->closes = false;
    }
    return true;
}

static bool end_head(struct answer *a) {
    if (a->status == 0) return false;
    if (a->status < 200) {                      /* 100 Continue: the answer is still to come */
        expect_answer(a);
        return true;
    }
    if (a->status == 204 || a->status == 304) a->length = 0, a->chunked = false;
    if (a->chunked) {
        a->part = CHUNK_SIZE;
    } else if (a->length >= 0) {
        a->left = a->length;
        a->part = a->left ? BODY : DONE;
    } else {
        a->part = BODY_TO_END;
        a->closes = true;
    }
    return true;
}

/* A whole line, its end cut off. False: this is not HTTP. */
static bool read_line(struct answer *a) {
    bool empty = a->line_bytes == 0;
    switch (a->part) {
    case HEAD:
        if (empty) return end_head(a);
        if (a->status) return read_header(a);
        a->closes = strncmp(a->line, "HTTP/1.0", 8) == 0;
        a->status = strncmp(a->line, "HTTP/1.", 7) == 0 && a->line_bytes > 11 ? atoi(a->line + 9) : 0;
        return a->status >= 100 && a->status < STATUSES;
    case CHUNK_SIZE:
        if (!read_number(a->line, 16, &a->left)) return false;
        a->part = a->left ? CHUNK : TRAILER;
        return true;
    case CHUNK_END:
        a->part = CHUNK_SIZE;
        return empty;
    default:
        if (empty) a->part = DONE;
        return true;
    }
}

static void read_body(struct answer *a, const char *data, size_t size) {
    if (ask.expected.data != NULL && a->status == 200) {
        size_t from = (size_t)a->body_bytes;
        if (from + size > ask.expected.size || memcmp(ask.expected.data + from, data, size) != 0) a->differs = true;
    }
    a->body_bytes += (int64_t)size;
}

/* False: this is not HTTP, or there is more than one answer. */
static bool read_piece(struct answer *a, const char *data, size_t size) {
    while (size) {
        size_t used = size;
        if (a->part == DONE) return false;
        if (a->part == BODY || a->part == CHUNK || a->part == BODY_TO_END) {
            if (a->part != BODY_TO_END && (int64_t)used > a->left) used = (size_t)a->left;
            read_body(a, data, used);
            if (a->part != BODY_TO_END && (a->left -= (int64_t)used) == 0) a->part = a->part == BODY ? DONE : CHUNK_END;
        } else {
            const char *end = memchr(data, '\n', size);
            if (end != NULL) used = (size_t)(end - data) + 1;
            size_t room = LINE_BYTES - 1 - a->line_bytes, kept = used < room ? used : room;
            memcpy(a->line + a->line_bytes, data, kept);        /* what is beyond says nothing about framing */
            a->line_bytes += kept;
            if (end != NULL) {
                while (a->line_bytes && strchr("\r\n", a->line[a->line_bytes - 1])) a->line_bytes--;
                a->line[a->line_bytes] = 0;
                if (!read_line(a)) return false;
                a->line_bytes = 0;
            }
        }
        data += used;
        size -= used;
    }
    return true;
}

static bool is_wrong(const struct answer *a) {
    if (a->status != 200) return false;
    if (ask.expected.data != NULL && (a->differs || (size_t)a->body_bytes != ask.expected.size)) return true;
    return ask.expected_bytes >= 0 && a->body_bytes != ask.expected_bytes;
}

/* --- what is found ----------------------------------------------------------------------------------------------- */

struct times { int64_t *ns; size_t size, room; };

static struct {
    int64_t now, begin, end, give_up;           /* the measured seconds; then how long for what is left */
    long by_status[STATUSES], good, errors, timeouts, wrong, reconnects;
    struct times ok, refused;
    int64_t latest_send;                        /* of a request that was due */
} run;

static void fail(const char *what) {
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(2);
}

static int64_t clock_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * SECOND + t.tv_nsec;
}

static void add(struct times *times, int64_t ns) {
    if (times->size == times->room) {
        times->room = times->room ? 2 * times->room : 4096;
        times->ns = realloc(times->ns, times->room * sizeof *times->ns);
        if (times->ns == NULL) fail("memory for latencies");
    }
    times->ns[times->size++] = ns;
}

static bool counts(int64_t begun) {
    int64_t when = ask.rate > 0 ? begun : run.now;
    return when >= run.begin && when < run.end;
}

static void count_answer(const struct answer *a, int64_t begun) {
    if (!counts(begun)) return;
    int64_t latency = run.now - begun;
    run.by_status[a->status]++;
    if (is_wrong(a)) run.wrong++;
    if (a->status == 200) {
        add(&run.ok, latency);
        if (ask.deadline_ms <= 0 || latency <= (int64_t)(ask.deadline_ms * MILLISECOND)) run.good++;
    } else if (a->status == 503 || a->status == 429) {
        add(&run.refused, latency);
    }
}

/* --- connections ------------------------------------------------------------------------------------------------- */

enum state { DOWN, CONNECTING, IDLE, BUSY };

struct connection {
    int fd;
    enum state state;
    bool waits_to_send;
    int64_t begun, retry;
    size_t sent;
    struct answer answer;
};

static struct connection *connections;
static int poll_fd;
static int *idle, idle_count;                   /* the last one used first, so that few are kept busy */
static char read_buffer[READ_BYTES];

static void watch(struct connection *c, int operation, bool to_send) {
    struct epoll_event event = {.events = EPOLLIN | (to_send ? EPOLLOUT : 0), .data.u32 = (uint32_t)(c - connections)};
    if (epoll_ctl(poll_fd, operation, c->fd, &event) != 0) fail("epoll_ctl");
    c->waits_to_send = to_send;
}

static void close_down(struct connection *c, int64_t retry) {
    if (c->state == IDLE)
        for (int i = 0; i < idle_count; i++)
            if (idle[i] == c - connections) idle[i] = idle[--idle_count];
    close(c->fd);
    c->state = DOWN;
    c->retry = retry;
}

static void give_up(struct connection *c, long *counter, int64_t retry) {
    if (counts(c->begun)) ++*counter;
    close_down(c, retry);
}

static void fill_socket(struct connection *c) {
    while (c->sent < ask.request.size) {
        ssize_t n = send(c->fd, ask.request.data + c->sent, ask.request.size - c->sent, MSG_NOSIGNAL);
        if (n < 0) break;                       /* full; or broken, and then what there is to read says more */
        c->sent += (size_t)n;
    }
    bool to_send = c->sent < ask.request.size && (errno == EAGAIN || errno == EWOULDBLOCK);
    if (to_send != c->waits_to_send) watch(c, EPOLL_CTL_MOD, to_send);
}

static void connect_to_server(struct connection *c) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)ask.port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->fd < 0) fail("socket");
    int one = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    c->state = CONNECTING;
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address) != 0 && errno != EINPROGRESS) {
        give_up(c, &run.errors, run.now + RETRY);
        return;
    }
    watch(c, EPOLL_CTL_ADD, true);
}

static void begin(struct connection *c, int64_t due) {
    c->begun = due;
    c->sent = 0;
    expect_answer(&c->answer);
    if (c->state == DOWN) {
        connect_to_server(c);
    } else {
        c->state = BUSY;
        fill_socket(c);
    }
}

static void finish(struct connection *c) {
    count_answer(&c->answer, c->begun);
    if (c->answer.closes || c->sent < ask.request.size) {       /* an early refusal: nobody will read the rest */
        run.reconnects++;
        close_down(c, run.now);
        if (ask.rate <= 0 && run.now < run.end) begin(c, run.now);
    } else if (ask.rate <= 0 && run.now < run.end) {
        begin(c, run.now);
    } else {
        c->state = IDLE;
        idle[idle_count++] = (int)(c - connections);
    }
}

static void empty_socket(struct connection *c) {
    for (;;) {
        ssize_t n = recv(c->fd, read_buffer, sizeof read_buffer, 0);
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
        bool at_end = n == 0 && c->answer.part == BODY_TO_END;
        if (c->state == IDLE) {
            run.reconnects++;                   /* closed while nobody used it */
            close_down(c, run.now);
            return;
        }
        if (!at_end && (n <= 0 || !read_piece(&c->answer, read_buffer, (size_t)n))) {
            give_up(c, &run.errors, run.now + RETRY);
            return;
        }
        if (at_end || c->answer.part == DONE) {
            finish(c);
            return;
        }
        if (n < (ssize_t)sizeof read_buffer) return;
    }
}

static void handle(struct connection *c, uint32_t events) {
    if (c->state == CONNECTING) {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error) {
            give_up(c, &run.errors, run.now + RETRY);
            return;
        }
        c->state = BUSY;
    }
    if (c->state == BUSY && (events & EPOLLOUT)) fill_socket(c);
    if (c->state != DOWN && (events & (EPOLLIN | EPOLLHUP | EPOLLERR))) empty_socket(c);
}

/* --- the loops --------------------------------------------------------------------------------------------------- */

static int64_t *due;                            /* open loop: when each request is to be sent */
static size_t due_count, next_due;

static void plan_arrivals(int64_t from) {
    double total_s = ask.warm_up_s + ask.seconds, at_s = 0;
    size_t room = (size_t)(ask.rate * total_s * 1.5) + 1000;
    uint64_t random = ask.seed * 0x9E3779B97F4A7C15u + 1;
    due = malloc(room * sizeof *due);
    if (due == NULL) fail("memory for arrivals");
    while (at_s < total_s && due_count < room) {
        due[due_count++] = from + (int64_t)(at_s * (double)SECOND);
        random ^= random << 13, random ^= random >> 7, random ^= random << 17;
        double uniform = (double)((random >> 11) + 1) / 9007199254740993.0;
        at_s += (ask.poisson ? -log(uniform) : 1.0) / ask.rate;
    }
}

static struct connection *free_connection(void) {
    if (idle_count) return &connections[idle[--idle_count]];
    for (int i = 0; i < ask.connections; i++)
        if (connections[i].state == DOWN && connections[i].retry <= run.now) return &connections[i];
    return NULL;
}

static void send_what_is_due(int64_t timeout) {
    for (; next_due < due_count && due[next_due] <= run.now; next_due++) {
        int64_t when = due[next_due];
        if (run.now - when > timeout) {         /* no connection became free in time */
            if (counts(when)) run.timeouts++;
            continue;
        }
        struct connection *c = free_connection();
        if (c == NULL) return;
        if (counts(when) && run.now - when > run.latest_send) run.latest_send = run.now - when;
        begin(c, when);
    }
}

/* Whether anything is still to be waited for. */
static bool look_after(int64_t timeout) {
    bool busy = next_due < due_count;
    for (int i = 0; i < ask.connections; i++) {
        struct connection *c = &connections[i];
        if ((c->state == BUSY || c->state == CONNECTING) && run.now - c->begun > timeout)
            give_up(c, &run.timeouts, run.now);
        if (ask.rate <= 0 && c->state == DOWN && c->retry <= run.now && run.now < run.end) begin(c, run.now);
        busy = busy || c->state == BUSY || c->state == CONNECTING;
    }
    return busy;
}

static void set_timer(int timer, int64_t at) {
    struct itimerspec when = {.it_value = {.tv_sec = at / SECOND, .tv_nsec = at % SECOND}};
    if (timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL) != 0) fail("timerfd_settime");
}

static void generate(void) {
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct epoll_event of_timer = {.events = EPOLLIN, .data.u32 = UINT32_MAX}, events[EVENTS];
    if (timer < 0 || epoll_ctl(poll_fd, EPOLL_CTL_ADD, timer, &of_timer) != 0) fail("timer");
    int64_t timeout = (int64_t)(ask.timeout_ms * MILLISECOND), tick = 0;
    bool busy = true;
    while (run.now < run.end || (busy && run.now < run.give_up)) {
        int64_t wake = tick;
        if (next_due < due_count && due[next_due] > run.now && due[next_due] < wake) wake = due[next_due];
        set_timer(timer, wake > run.now ? wake : run.now + 1);
        int count = epoll_wait(poll_fd, events, EVENTS, -1);
        if (count < 0 && errno != EINTR) fail("epoll_wait");
        run.now = clock_ns();
        for (int i = 0; i < count; i++) {
            uint64_t expirations;
            if (events[i].data.u32 != UINT32_MAX) handle(&connections[events[i].data.u32], events[i].events);
            else if (read(timer, &expirations, sizeof expirations) < 0 && errno != EAGAIN) fail("timer");
            run.now = clock_ns();
        }
        send_what_is_due(timeout);
        if (run.now >= tick) {
            busy = look_after(timeout);
            tick = run.now + TICK;
        }
    }
    for (int i = 0; i < ask.connections; i++)
        if (connections[i].state == BUSY || connections[i].state == CONNECTING) give_up(&connections[i], &run.timeouts, 0);
    for (; next_due < due_count; next_due++)
        if (counts(due[next_due])) run.timeouts++;
    close(timer);
}

/* --- the report -------------------------------------------------------------------------------------------------- */

static int by_value(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* Percentiles by nearest rank; null where there is nothing. */
static void print_times(const char *name, struct times *times) {
    static const struct { const char *name; double share; } wanted[] = {
        {"p50", .5}, {"p90", .9}, {"p99", .99}, {"p99.9", .999}, {"max", 1}};
    printf(", \"%s\": {", name);
    if (times->size) qsort(times->ns, times->size, sizeof *times->ns, by_value);
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        printf("%s\"%s\": ", i ? ", " : "", wanted[i].name);
        if (times->size == 0) {
            printf("null");
            continue;
        }
        size_t rank = (size_t)ceil(wanted[i].share * (double)times->size);
        printf("%.4f", (double)times->ns[rank ? rank - 1 : 0] / (double)MILLISECOND);
    }
    printf("}");
}

static void report(void) {
    long requests = 0;
    const char *comma = "";
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    printf("{\"by_status\": {");
    for (int status = 0; status < STATUSES; status++) {
        if (run.by_status[status] == 0) continue;
        printf("%s\"%d\": %ld", comma, status, run.by_status[status]);
        comma = ", ";
        requests += run.by_status[status];
    }
    double cpu_s = (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
                   (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
    printf("}, \"requests\": %ld, \"seconds\": %.6f, \"good\": %ld, \"errors\": %ld, \"timeouts\": %ld, \"wrong\": %ld, "
           "\"reconnects\": %ld, \"latest_send_ms\": %.4f, \"cpu_s\": %.3f",
           requests, ask.seconds, run.good, run.errors, run.timeouts, run.wrong, run.reconnects,
           (double)run.latest_send / (double)MILLISECOND, cpu_s);
    print_times("ok_ms", &run.ok);
    print_times("refused_ms", &run.refused);
    printf("}\n");
}

/* --- the command line -------------------------------------------------------------------------------------------- */

static struct bytes read_file(const char *path) {
    struct bytes bytes = {NULL, 0};
    FILE *file = fopen(path, "rb");
    if (file == NULL || fseek(file, 0, SEEK_END) != 0) fail(path);
    bytes.size = (size_t)ftell(file);
    rewind(file);
    bytes.data = malloc(bytes.size + 1);
    if (bytes.data == NULL || fread(bytes.data, 1, bytes.size, file) != bytes.size) fail(path);
    fclose(file);
    return bytes;
}

static void read_command_line(int argc, char **argv) {
    static const struct option options[] = {
        {"port", 1, 0, 'p'}, {"request", 1, 0, 'q'}, {"connections", 1, 0, 'c'}, {"seconds", 1, 0, 's'},
        {"warm-up", 1, 0, 'w'}, {"rate", 1, 0, 'r'}, {"poisson", 0, 0, 'P'}, {"seed", 1, 0, 'S'},
        {"deadline-ms", 1, 0, 'd'}, {"timeout-ms", 1, 0, 't'}, {"expect-bytes", 1, 0, 'b'}, {"expect-file", 1, 0, 'f'},
        {0, 0, 0, 0}};
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        switch (option) {
        case 'p': ask.port = atoi(optarg); break;
        case 'q': ask.request = read_file(optarg); break;
        case 'c': ask.connections = atoi(optarg); break;
        case 's': ask.seconds = atof(optarg); break;
        case 'w': ask.warm_up_s = atof(optarg); break;
        case 'r': ask.rate = atof(optarg); break;
        case 'P': ask.poisson = true; break;
        case 'S': ask.seed = strtoull(optarg, NULL, 10); break;
        case 'd': ask.deadline_ms = atof(optarg); break;
        case 't': ask.timeout_ms = atof(optarg); break;
        case 'b': ask.expected_bytes = atol(optarg); break;
        case 'f': ask.expected = read_file(optarg); break;
        default: exit(2);
        }
    }
    if (ask.port <= 0 || ask.port > 65535 || ask.request.size == 0 || ask.connections < 1 || ask.connections > 10000 ||
        !(ask.seconds > 0) || ask.seconds > 600 || !(ask.timeout_ms > 0) || ask.rate * ask.seconds > 1e8) {
        fprintf(stderr, "load: --port and --request are needed; at most 10000 connections, 600 s, 1e8 requests\n");
        exit(2);
    }
}

int main(int argc, char **argv) {
    read_command_line(argc, argv);
    connections = calloc((size_t)ask.connections, sizeof *connections);
    idle = calloc((size_t)ask.connections, sizeof *idle);
    poll_fd = epoll_create1(0);
    if (connections == NULL || idle == NULL || poll_fd < 0) fail("start");
    int64_t from = run.now = clock_ns();
    run.begin = from + (int64_t)(ask.warm_up_s * (double)SECOND);
    run.end = run.begin + (int64_t)(ask.seconds * (double)SECOND);
    run.give_up = run.end + (int64_t)(ask.timeout_ms * MILLISECOND);
    if (ask.rate > 0) plan_arrivals(from);
    look_after((int64_t)(ask.timeout_ms * MILLISECOND));
    generate();
    report();
    return 0;
}
