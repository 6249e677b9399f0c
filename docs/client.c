/*
 * A device that speaks version 1 of GoShield's protocol (docs/PROTOCOL.md), in C99 with OpenSSL:
 * a reference for firmware, to be read and taken from. It does what the protocol asks of a device:
 *
 *   - checks the gateway's certificate and name, with TLS 1.2 or later;
 *   - enrols, or resumes with the token that it keeps in a file;
 *   - takes new tokens by the rules that never lock it out: a new one is on disk before it is first
 *     sent, the one before is kept until a frame with the new one was answered, and if the new one is
 *     bad_token the one before is tried once, and then it enrols;
 *   - sends heartbeats, and acknowledges pushes;
 *   - on GOAWAY connects again when it was told to, without losing an answer;
 *   - connects again with back-off and full jitter.
 *
 * It has one request in flight: a line of standard input is the body (JSON) of the next one, the
 * answer is printed. So "no answer" is simple: it is lost with the connection, and not sent again.
 *
 *   cc -std=c99 -Wall -Wextra -o client docs/client.c -lssl -lcrypto
 *   ./client localhost 8443 .goshield/ca.pem 00:1a:2b:3c:4d:5e token echo
 *
 * What it leaves out: PROOF (enrolment by key), WebSocket, moving to a new connection before the old
 * one has ended. Its JSON reader takes what gateways send: objects whose members it looks up by name.
 * It ends at the end of input, with 0; with 1 when it must not go on (another device has its name,
 * or it is not registered, or its token cannot be kept).
 */
#define _POSIX_C_SOURCE 200809L

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <openssl/err.h>
#include <openssl/rand.h>
#include <openssl/sha.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

enum { HELLO = 1, WELCOME, REQUEST, RESPONSE, HEARTBEAT, HEARTBEAT_ACK, PUSH, PUSH_ACK, ERROR, GOAWAY, CHALLENGE, PROOF, BYE };

enum {
	HEADER = 4,
	MAX_PAYLOAD = 65535,
	TOKEN = 36,          /* characters of a UUID */
	CONNECT_MS = 10000,  /* for TCP, TLS and WELCOME */
	ANSWER_MS = 10000,   /* a heartbeat without an ack, a write that is not taken */
	BACKOFF_MS = 500,    /* doubled with each attempt */
	BACKOFF_MAX_MS = 30000
};

/* What became of a connection: it broke or was refused, connect again after a while; connect again at once; there is
 * nothing more to do; give up. */
enum ending { LOST, MOVE, FINISHED, FATAL };

static struct {
	const char *host, *port, *ca, *token_file, *service;
	char client_id[2 * SHA256_DIGEST_LENGTH + 1];
} config;

/* The tokens, as they are on disk: one a line. previous is "" once a frame with current was answered. */
static struct {
	char current[TOKEN + 1], previous[TOKEN + 1];
} tokens;

static struct {
	SSL *ssl;
	int fd;
	unsigned char in[HEADER + MAX_PAYLOAD + 1]; /* a frame, and a zero behind it */
	size_t have;                                 /* bytes of it */
	size_t max_frame;
	long heartbeat_ms;
	long next_beat, ack_by; /* ack_by 0: no heartbeat is unanswered */
	/* With which tokens the heartbeat and the request that are unanswered were sent. */
	char beat_token[TOKEN + 1], ask_token[TOKEN + 1];
	long leave_at; /* GOAWAY: connect again then; 0: it was not told to */
} conn;

static SSL_CTX *tls;
static char line[MAX_PAYLOAD]; /* of standard input, as far as it was read */
static size_t line_length;
static int line_waits, input_ended;
static unsigned request_id, in_flight; /* in_flight 0: none */
static long retry_after; /* what the gateway said, ms */

static void note(const char *format, ...) {
	va_list args;
	va_start(args, format);
	fputs("- ", stderr);
	vfprintf(stderr, format, args);
	fputc('\n', stderr);
	va_end(args);
}

/* now is the time in ms, by a clock that is never set. */
static long now(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (long)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void wait_ms(long ms) {
	struct timespec t = {ms / 1000, ms % 1000 * 1000000};
	while (nanosleep(&t, &t) == -1 && errno == EINTR) {
	}
}

/* ---- Tokens on disk ---- */

/* write_tokens returns when they would survive a loss of power. */
static int write_tokens(void) {
	char beside[4096], dir[4096], *slash;
	int fd, n = snprintf(beside, sizeof beside, "%s.new", config.token_file);
	if (n < 0 || (size_t)n >= sizeof beside) return -1;
	if ((fd = open(beside, O_WRONLY | O_CREAT | O_TRUNC, 0600)) == -1) return -1;
	n = dprintf(fd, "%s\n%s\n", tokens.current, tokens.previous);
	if (n < 0 || fsync(fd) == -1) {
		close(fd);
		return -1;
	}
	if (close(fd) == -1 || rename(beside, config.token_file) == -1) return -1;
	strcpy(dir, beside);
	slash = strrchr(dir, '/');
	strcpy(slash ? slash + 1 : dir, ".");
	if ((fd = open(dir, O_RDONLY)) == -1) return -1;
	n = fsync(fd); /* of the rename */
	close(fd);
	return n;
}

static int save_tokens(void) {
	int n = write_tokens();
	if (n == -1) note("the token cannot be kept in %s: %s", config.token_file, strerror(errno));
	return n;
}

static void load_tokens(void) {
	FILE *f = fopen(config.token_file, "r");
	if (!f) return;
	if (fgets(tokens.current, sizeof tokens.current, f) && strlen(tokens.current) == TOKEN) {
		fgetc(f);
		if (!fgets(tokens.previous, sizeof tokens.previous, f) || strlen(tokens.previous) != TOKEN) tokens.previous[0] = 0;
	} else {
		tokens.current[0] = 0; /* a file that cannot be understood counts as none */
	}
	fclose(f);
}

/* take_token takes a successor: on disk before it is first sent. If the current one was never answered, the
 * gateway may have forgotten it, and knows the one before. */
static int take_token(const char *token) {
	if (strcmp(token, tokens.current) == 0) return 0;
	if (!tokens.previous[0]) strcpy(tokens.previous, tokens.current);
	strcpy(tokens.current, token);
	note("got a new token");
	return save_tokens();
}

/* token_answered: a frame with that token was accepted. */
static int token_answered(const char *token) {
	if (!tokens.previous[0] || strcmp(token, tokens.current) != 0) return 0;
	tokens.previous[0] = 0;
	return save_tokens();
}

/* token_refused: the next HELLO tries the one before, after bad_token and once, or enrols. The file stays until
 * there is something better. */
static void token_refused(const char *code) {
	if (strcmp(code, "bad_token") == 0) strcpy(tokens.current, tokens.previous);
	else tokens.current[0] = 0;
	tokens.previous[0] = 0;
}

/* ---- JSON, as far as gateways send it ---- */

static const char *skip_space(const char *p) { return p + strspn(p, " \t\r\n"); }

/* skip_value returns what is behind a value, NULL at the end of the text. */
static const char *skip_value(const char *p) {
	int depth = 0;
	for (;; p++) {
		if (*p == '"') {
			for (p++; *p != '"'; p++) {
				if (*p == '\\') p++;
				if (!*p) return NULL;
			}
		} else if (*p == '{' || *p == '[') {
			depth++;
		} else if (*p == '}' || *p == ']') {
			if (depth == 0) return p;
			if (--depth == 0) return p + 1;
		} else if (!*p) {
			return depth == 0 ? p : NULL;
		} else if (depth == 0 && *p == ',') {
			return p;
		}
		if (depth == 0 && *p == '"') return p + 1;
	}
}

/* member finds a member of an object and how long its value is; NULL: it is absent. */
static const char *member(const char *object, const char *name, size_t *length) {
	size_t n = strlen(name);
	const char *p = skip_space(object), *key, *end;
	if (*p != '{') return NULL;
	for (p = skip_space(p + 1); *p == '"'; p = skip_space(p + 1)) {
		key = p + 1;
		if (!(end = skip_value(p))) return NULL;
		p = skip_space(end);
		if (*p != ':') return NULL;
		p = skip_space(p + 1);
		if (!(end = skip_value(p))) return NULL;
		if (strncmp(key, name, n) == 0 && key[n] == '"') {
			while (end > p && isspace((unsigned char)end[-1])) end--;
			*length = (size_t)(end - p);
			return p;
		}
		p = skip_space(end);
		if (*p != ',') return NULL;
	}
	return NULL;
}

/* text copies a string without escapes, as tokens and codes are; "" if it is absent, another thing, or too long. */
static void text(const char *object, const char *name, char *to, size_t size) {
	size_t n;
	const char *value = member(object, name, &n);
	*to = 0;
	if (!value || n < 2 || *value != '"' || n - 2 >= size) return;
	memcpy(to, value + 1, n - 2);
	to[n - 2] = 0;
}

/* number is 0 if it is absent, or no number. */
static long number(const char *object, const char *name) {
	size_t n;
	const char *value = member(object, name, &n);
	return value ? strtol(value, NULL, 10) : 0;
}

/* ---- Frames ---- */

/* ready waits until the socket can be read or written, whichever TLS wants, at most until then. */
static int ready(int ssl_error, long until) {
	struct pollfd p = {conn.fd, ssl_error == SSL_ERROR_WANT_WRITE ? POLLOUT : POLLIN, 0};
	long left = until - now();
	if (ssl_error != SSL_ERROR_WANT_READ && ssl_error != SSL_ERROR_WANT_WRITE) return 0;
	return left > 0 && poll(&p, 1, (int)left) > 0;
}

/* send_frame sends a frame whose payload is made as printf makes it. */
static int send_frame(int type, const char *format, ...) {
	static unsigned char out[HEADER + MAX_PAYLOAD + 1];
	va_list args;
	long until = now() + ANSWER_MS;
	int n, sent;
	va_start(args, format);
	n = vsnprintf((char *)out + HEADER, MAX_PAYLOAD + 1, format, args);
	va_end(args);
	if (n < 0 || n > MAX_PAYLOAD) return -1;
	out[0] = 1;
	out[1] = (unsigned char)type;
	out[2] = (unsigned char)(n >> 8);
	out[3] = (unsigned char)n;
	while ((sent = SSL_write(conn.ssl, out, HEADER + n)) <= 0) {
		if (!ready(SSL_get_error(conn.ssl, sent), until)) return -1;
	}
	return 0;
}

/* read_frame reads what there is: the type of a whole frame, whose payload payload() is, 0 if there is none yet,
 * -1 at the end of the connection. */
static int read_frame(void) {
	for (;;) {
		size_t want = HEADER;
		int n;
		if (conn.have >= HEADER) {
			want += (size_t)conn.in[2] << 8 | conn.in[3];
			if (conn.in[0] != 1 || want > HEADER + conn.max_frame) return -1;
			if (conn.have == want) {
				conn.in[want] = 0;
				conn.have = 0;
				return conn.in[1];
			}
		}
		n = SSL_read(conn.ssl, conn.in + conn.have, (int)(want - conn.have));
		if (n <= 0) {
			n = SSL_get_error(conn.ssl, n);
			return n == SSL_ERROR_WANT_READ || n == SSL_ERROR_WANT_WRITE ? 0 : -1;
		}
		conn.have += (size_t)n;
	}
}

static const char *payload(void) { return (const char *)conn.in + HEADER; }

/* await_frame is read_frame that waits. */
static int await_frame(long until) {
	int type;
	while ((type = read_frame()) == 0 && ready(SSL_ERROR_WANT_READ, until)) {
	}
	return type == 0 ? -1 : type;
}

/* ---- A connection ---- */

/* dial connects by TCP within the time. */
static int dial(long until) {
	struct addrinfo hints, *all, *a;
	int fd = -1, fault;
	socklen_t size = sizeof fault;
	memset(&hints, 0, sizeof hints);
	hints.ai_socktype = SOCK_STREAM;
	if (getaddrinfo(config.host, config.port, &hints, &all) != 0) return -1;
	for (a = all; a; a = a->ai_next) {
		struct pollfd p;
		long left = until - now();
		if ((fd = socket(a->ai_family, a->ai_socktype, a->ai_protocol)) == -1) continue;
		fcntl(fd, F_SETFL, O_NONBLOCK);
		p.fd = fd;
		p.events = POLLOUT;
		if ((connect(fd, a->ai_addr, a->ai_addrlen) == 0 || errno == EINPROGRESS) && left > 0 && poll(&p, 1, (int)left) == 1 &&
		    getsockopt(fd, SOL_SOCKET, SO_ERROR, &fault, &size) == 0 && fault == 0) {
			break;
		}
		close(fd);
		fd = -1;
	}
	freeaddrinfo(all);
	return fd;
}

static void hang_up(void) {
	if (conn.ssl) SSL_free(conn.ssl);
	if (conn.fd != -1) close(conn.fd);
	conn.ssl = NULL;
	conn.fd = -1;
}

/* refused deals with an ERROR about the connection. */
static enum ending refused(void) {
	char code[64];
	text(payload(), "code", code, sizeof code);
	retry_after = number(payload(), "retry_after_ms");
	note("the gateway says %s", code);
	if (strcmp(code, "bad_token") == 0 || strcmp(code, "token_expired") == 0 || strcmp(code, "token_reused") == 0 || strcmp(code, "revoked") == 0) {
		token_refused(code);
		return LOST;
	}
	if (strcmp(code, "taken_over") == 0 || strcmp(code, "unknown_client") == 0 || strcmp(code, "bad_proof") == 0) return FATAL;
	return LOST;
}

/* open_session connects and is welcomed. FINISHED stands for success. */
static enum ending open_session(void) {
	long until = now() + CONNECT_MS;
	int n, type, enrols = !tokens.current[0];
	char token[TOKEN + 1];
	memset(&conn, 0, sizeof conn);
	conn.max_frame = MAX_PAYLOAD;
	if ((conn.fd = dial(until)) == -1) return LOST;
	if (!(conn.ssl = SSL_new(tls)) || !SSL_set_fd(conn.ssl, conn.fd) || !SSL_set_tlsext_host_name(conn.ssl, config.host) ||
	    !SSL_set1_host(conn.ssl, config.host)) {
		return LOST;
	}
	while ((n = SSL_connect(conn.ssl)) <= 0) {
		if (!ready(SSL_get_error(conn.ssl, n), until)) {
			long verdict = SSL_get_verify_result(conn.ssl);
			if (verdict != X509_V_OK) note("the gateway's certificate: %s", X509_verify_cert_error_string(verdict));
			return LOST;
		}
	}
	if (enrols) n = send_frame(HELLO, "{\"client_id\":\"%s\",\"agent\":\"client.c\"}", config.client_id);
	else n = send_frame(HELLO, "{\"client_id\":\"%s\",\"token\":\"%s\",\"agent\":\"client.c\"}", config.client_id, tokens.current);
	if (n == -1) return LOST;
	type = await_frame(until);
	if (type == ERROR) return refused();
	if (type == CHALLENGE) {
		note("the gateway asks for a proof, which this client cannot give");
		return FATAL;
	}
	if (type != WELCOME) return LOST;
	text(payload(), "token", token, sizeof token);
	if (strlen(token) != TOKEN) return LOST;
	conn.max_frame = (size_t)number(payload(), "max_frame");
	conn.heartbeat_ms = number(payload(), "heartbeat_ms");
	conn.next_beat = now() + conn.heartbeat_ms;
	if (enrols) {
		strcpy(tokens.current, token); /* nothing from before is of any use */
		tokens.previous[0] = 0;
		n = save_tokens();
	} else if ((n = token_answered(tokens.current)) == 0) {
		n = take_token(token);
	}
	if (n == -1) {
		return FATAL;
	}
	note(enrols ? "enrolled" : "resumed");
	return FINISHED;
}

/* read_line reads standard input; line_waits says that there is a line. */
static void read_line(void) {
	while (!line_waits) {
		ssize_t n = read(STDIN_FILENO, line + line_length, 1);
		if (n <= 0) {
			input_ended = n == 0 || (errno != EAGAIN && errno != EINTR);
			return;
		}
		if (line[line_length] == '\n') line_waits = line_length > 0;
		else if (line_length < sizeof line - 1) line_length++;
		line[line_length] = 0;
	}
}

/* ask sends the line. */
static int ask(void) {
	in_flight = ++request_id ? request_id : ++request_id;
	strcpy(conn.ask_token, tokens.current);
	if (line_length + 512 > conn.max_frame) {
		note("longer than a frame can be");
		in_flight = 0;
	} else if (send_frame(REQUEST, "{\"id\":%u,\"token\":\"%s\",\"service\":\"%s\",\"body\":%s}", in_flight, tokens.current, config.service, line) == -1) {
		return -1;
	}
	line_waits = 0;
	line_length = 0;
	return 0;
}

/* beat sends a heartbeat when it is due, and the one before was answered; -1 if that took too long. */
static int beat(void) {
	if (conn.ack_by) return now() < conn.ack_by ? 0 : -1;
	if (!conn.heartbeat_ms || now() < conn.next_beat) return 0;
	conn.next_beat = now() + conn.heartbeat_ms;
	conn.ack_by = now() + ANSWER_MS;
	strcpy(conn.beat_token, tokens.current);
	return send_frame(HEARTBEAT, "{\"token\":\"%s\"}", tokens.current);
}

/* print_body prints a member, as it came. */
static void print_body(const char *prefix) {
	size_t n = 0;
	const char *body = member(payload(), "body", &n);
	printf("%s%.*s\n", prefix, (int)n, body ? body : "");
	fflush(stdout);
}

/* take deals with a frame. FINISHED stands for: go on. */
static enum ending take(int type) {
	char token[TOKEN + 1], code[64], message[256];
	size_t n;
	switch (type) {
	case RESPONSE:
		if (in_flight && (unsigned long)number(payload(), "id") == in_flight) {
			in_flight = 0;
			print_body("");
			if (token_answered(conn.ask_token) == -1) return FATAL;
		}
		return FINISHED;
	case HEARTBEAT_ACK:
		conn.ack_by = 0;
		if (token_answered(conn.beat_token) == -1) return FATAL;
		text(payload(), "token", token, sizeof token);
		return strlen(token) == TOKEN && take_token(token) == -1 ? FATAL : FINISHED;
	case PUSH:
		print_body("push ");
		return send_frame(PUSH_ACK, "{\"id\":%lu}", (unsigned long)number(payload(), "id")) == -1 ? LOST : FINISHED;
	case ERROR:
		if (!member(payload(), "id", &n)) {
			size_t length;
			const char *closes = member(payload(), "close", &length);
			return closes && *closes == 't' ? refused() : FINISHED;
		}
		text(payload(), "code", code, sizeof code);
		text(payload(), "message", message, sizeof message);
		note("refused: %s: %s", code, message);
		in_flight = 0;
		return FINISHED;
	case GOAWAY:
		note("asked to go");
		conn.leave_at = now() + number(payload(), "after_ms");
		return FINISHED;
	}
	return FINISHED; /* of a later protocol */
}

/* serve keeps the connection until it ends, or the input. */
static enum ending serve(void) {
	for (;;) {
		struct pollfd p[2] = {{conn.fd, POLLIN, 0}, {STDIN_FILENO, POLLIN, 0}};
		long until = now() + 1000;
		int type, leaving, wants_line = !in_flight && !line_waits && !input_ended;
		while ((type = read_frame()) > 0) {
			enum ending end = take(type);
			if (end != FINISHED) return end;
		}
		if (type == -1) return LOST;
		/* Until it is to go it is served as ever; then only an answer that is under way is waited for. */
		leaving = conn.leave_at && now() >= conn.leave_at;
		if (leaving && (!in_flight || now() >= conn.leave_at + ANSWER_MS)) return MOVE;
		if (beat() == -1) return LOST;
		if (!in_flight && input_ended && !line_waits) return FINISHED;
		if (!in_flight && line_waits) {
			if (ask() == -1) return LOST;
			continue;
		}
		if (conn.heartbeat_ms && !conn.ack_by && conn.next_beat < until) until = conn.next_beat;
		if (conn.leave_at && !leaving && conn.leave_at < until) until = conn.leave_at;
		if (until <= now()) continue;
		if (poll(p, wants_line ? 2 : 1, (int)(until - now())) > 0 && wants_line && p[1].revents) read_line();
	}
}

/* back_off waits a random time, at most twice as long with each attempt. */
static void back_off(int attempt) {
	long limit = BACKOFF_MS;
	unsigned r = 0;
	while (attempt-- > 0 && limit < BACKOFF_MAX_MS) limit *= 2;
	if (limit > BACKOFF_MAX_MS) limit = BACKOFF_MAX_MS;
	RAND_bytes((unsigned char *)&r, sizeof r);
	wait_ms(retry_after + (long)(r % (unsigned long)limit));
	retry_after = 0;
}

/* set_client_id hashes the twelve digits of a MAC address. */
static int set_client_id(const char *mac) {
	unsigned char digits[12], hash[SHA256_DIGEST_LENGTH];
	size_t n = 0, i;
	for (; *mac; mac++) {
		if (strchr(":-. ", *mac)) continue;
		if (!isxdigit((unsigned char)*mac) || n == sizeof digits) return -1;
		digits[n++] = (unsigned char)tolower((unsigned char)*mac);
	}
	if (n != sizeof digits) return -1;
	SHA256(digits, n, hash);
	for (i = 0; i < sizeof hash; i++) sprintf(config.client_id + 2 * i, "%02x", hash[i]);
	return 0;
}

int main(int argc, char **argv) {
	int attempt = 0;
	if (argc != 7 || set_client_id(argv[4]) == -1) {
		fprintf(stderr, "usage: %s HOST PORT CA-FILE MAC TOKEN-FILE SERVICE\n", argv[0]);
		return 2;
	}
	config.host = argv[1];
	config.port = argv[2];
	config.ca = argv[3];
	config.token_file = argv[5];
	config.service = argv[6];
	signal(SIGPIPE, SIG_IGN);
	fcntl(STDIN_FILENO, F_SETFL, fcntl(STDIN_FILENO, F_GETFL) | O_NONBLOCK);
	tls = SSL_CTX_new(TLS_client_method());
	if (!tls || !SSL_CTX_set_min_proto_version(tls, TLS1_2_VERSION) || !SSL_CTX_load_verify_locations(tls, config.ca, NULL)) {
		fprintf(stderr, "%s: no certificates that can be used\n", config.ca);
		return 1;
	}
	SSL_CTX_set_verify(tls, SSL_VERIFY_PEER, NULL);
	load_tokens();
	for (;;) {
		enum ending end = open_session();
		if (end == FINISHED) {
			attempt = 0;
			end = serve();
			if (end == FINISHED) send_frame(BYE, "{}");
		}
		if (in_flight) note("the connection ended before the answer came: it was carried out, or not");
		in_flight = 0;
		hang_up();
		if (end == FINISHED || end == FATAL) {
			SSL_CTX_free(tls);
			return end == FATAL;
		}
		if (end == MOVE) continue;
		note("disconnected, connecting again");
		back_off(attempt++);
	}
}
