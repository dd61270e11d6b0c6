/*
 * Hides the bytes of the protocol that libfuse does not speak for us.
 */
#include "fs/mount/fuse_passthrough.h"

#include <errno.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

/* The kernel's ABI, where the system's header is older than 7.40. */
#define PASSTHROUGH_FLAG2 (1u << 5) /* FUSE_PASSTHROUGH, bit 37 */
#define STACK_DEPTH 1               /* one file system (ours) may lie on the backing one */
#ifdef FUSE_DEV_IOC_BACKING_OPEN
typedef struct fuse_backing_map backing_map;
#else
typedef struct {
	int32_t fd;
	uint32_t flags;
	uint64_t padding;
} backing_map;
#define FUSE_DEV_IOC_BACKING_OPEN _IOW(229, 1, backing_map)
#define FUSE_DEV_IOC_BACKING_CLOSE _IOW(229, 2, uint32_t)
#endif

/* 7.40, too. */
#define HAS_RESEND_FLAG2 (1u << 7) /* FUSE_HAS_RESEND, bit 39 */
#define NOTIFY_RESEND 7            /* FUSE_NOTIFY_RESEND */
#define UNIQUE_RESEND (1ull << 63) /* FUSE_UNIQUE_RESEND */

/* libfuse >= 3.17 negotiates by itself. */
#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 17)
#define LIBRARY_NEGOTIATES 1
#else
#define LIBRARY_NEGOTIATES 0
#endif

static _Thread_local bool serving;
static _Thread_local uint64_t unique;

bool passthrough_serving(void)
{
	return serving;
}

uint64_t passthrough_request(void)
{
	return unique & ~UNIQUE_RESEND;
}

bool passthrough_again(void)
{
	return unique & UNIQUE_RESEND;
}

static void init_reply(struct passthrough *passthrough, struct fuse_init_out *out)
{
	/* struct fuse_init_out's max_stack_depth follows flags2 (7.40). */
	uint32_t *stack_depth = (uint32_t *)((char *)&out->flags2 + sizeof(out->flags2));
	if (passthrough->offered_kill_priv) {
		out->flags |= FUSE_HANDLE_KILLPRIV_V2;
		out->flags &= ~(uint32_t)FUSE_HANDLE_KILLPRIV;
		passthrough->kill_priv = true;
	}
	if (LIBRARY_NEGOTIATES || !passthrough->wanted || !passthrough->offered ||
	    !(out->flags & FUSE_INIT_EXT))
		return;
	out->flags2 |= PASSTHROUGH_FLAG2;
	*stack_depth = STACK_DEPTH;
	passthrough->active = true;
}

static ssize_t io_writev(int fd, struct iovec *parts, int count, void *context)
{
	struct passthrough *passthrough = context;
	if (atomic_load_explicit(&passthrough->initialised, memory_order_acquire))
		return writev(fd, parts, count);
	ssize_t done = 0;
	if (count == 2 && parts[1].iov_len == sizeof(struct fuse_init_out))
		init_reply(passthrough, parts[1].iov_base);
	for (int i = 0; i < count && passthrough->replaying; i++)
		done += (ssize_t)parts[i].iov_len;
	if (!passthrough->replaying)
		done = writev(fd, parts, count);
	if (done >= 0 && passthrough->keep)
		passthrough->keep->serving = true;
	atomic_store_explicit(&passthrough->initialised, true, memory_order_release);
	return done;
}

/* What INIT offers, and INIT itself for a successor. */
static void init_note(struct passthrough *passthrough, const struct fuse_in_header *header,
                      size_t length)
{
	const struct fuse_init_in *in = (const struct fuse_init_in *)(header + 1);
	if (length < sizeof(*header) + sizeof(*in))
		return;
	passthrough->offered_kill_priv = in->flags & FUSE_HANDLE_KILLPRIV_V2;
	bool more = in->flags & FUSE_INIT_EXT;
	passthrough->offered = more && (in->flags2 & PASSTHROUGH_FLAG2);
	struct keep_root *keep = passthrough->keep;
	if (!keep || passthrough->replaying || length > sizeof(keep->init))
		return;
	memcpy(keep->init, header, length);
	keep->init_length = (uint32_t)length;
	keep->resends = more && (in->flags2 & HAS_RESEND_FLAG2);
}

static ssize_t io_read(int fd, void *bytes, size_t length, void *context)
{
	struct passthrough *passthrough = context;
	struct fuse_in_header *header = bytes;
	serving = true;
	ssize_t got = read(fd, bytes, length);
	if (got < (ssize_t)sizeof(*header))
		return got;
	unique = header->unique;
	if (header->opcode == FUSE_TMPFILE)
		header->opcode = FUSE_CREATE;
	if (header->opcode == FUSE_INIT)
		init_note(passthrough, header, (size_t)got);
	return got;
}

int passthrough_install(struct passthrough *passthrough, struct fuse_session *session, int device)
{
	static const struct fuse_custom_io io = {.writev = io_writev, .read = io_read};
	passthrough->session = session;
	return fuse_session_custom_io(session, &io, device) == 0 ? 0 : -1;
}

void passthrough_replay(struct passthrough *passthrough)
{
	uint64_t bytes[KEEP_INIT_MAX / sizeof(uint64_t)];
	struct fuse_buf buffer = {.mem = bytes, .size = passthrough->keep->init_length};
	memcpy(bytes, passthrough->keep->init, buffer.size);
	passthrough->replaying = true;
	init_note(passthrough, buffer.mem, buffer.size);
	fuse_session_process_buf(passthrough->session, &buffer);
	passthrough->replaying = false;
}

bool passthrough_resend(struct passthrough *passthrough)
{
	const struct fuse_out_header header = {.len = sizeof(header), .error = NOTIFY_RESEND};
	return write(fuse_session_fd(passthrough->session), &header, sizeof(header)) ==
	       (ssize_t)sizeof(header);
}

void passthrough_negotiate(struct passthrough *passthrough, struct fuse_conn_info *connection)
{
#if LIBRARY_NEGOTIATES
	if (passthrough->wanted && connection->capable & FUSE_CAP_PASSTHROUGH) {
		connection->want |= FUSE_CAP_PASSTHROUGH;
		connection->max_backing_stack_depth = STACK_DEPTH;
		passthrough->active = true;
	}
#else
	(void)passthrough;
	(void)connection;
#endif
}

int passthrough_open(struct passthrough *passthrough, int fd)
{
	backing_map map = {.fd = fd};
	if (!passthrough->active)
		return -EOPNOTSUPP;
	int backing = ioctl(fuse_session_fd(passthrough->session), FUSE_DEV_IOC_BACKING_OPEN, &map);
	if (backing > 0)
		return backing;
	int problem = backing < 0 ? errno : EIO;
	/* Not privileged, or the lake lies on a stacked file system: it will not change. */
	if (problem == EPERM || problem == ELOOP)
		passthrough->active = false;
	return -problem;
}

void passthrough_close(struct passthrough *passthrough, int backing)
{
	uint32_t id = (uint32_t)backing;
	ioctl(fuse_session_fd(passthrough->session), FUSE_DEV_IOC_BACKING_CLOSE, &id);
}
