/* LD_PRELOAD shim for servers that can only bind the any-address: such a bind becomes a loopback bind,
 * so that a server under test is never reachable from another machine.
 * Build: gcc -shared -fPIC -O2 -o lo_bind.so lo_bind.c -ldl */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>

typedef int (*bind_function)(int, const struct sockaddr *, socklen_t);

static bind_function next_bind(void)
{
    static bind_function found;
    if (!found)
        found = (bind_function)dlsym(RTLD_NEXT, "bind");
    return found;
}

static int accepts_ipv4(int fd)
{
    int v6only = 0;
    socklen_t size = sizeof v6only;
    return getsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &v6only, &size) == 0 && !v6only;
}

/* Both structures are copied: the caller's address is const and may be reused. */
int bind(int fd, const struct sockaddr *address, socklen_t length)
{
    bind_function real = next_bind();
    if (!real) {
        errno = ENOSYS;
        return -1;
    }
    if (address && address->sa_family == AF_INET && length >= sizeof(struct sockaddr_in)) {
        struct sockaddr_in v4;
        memcpy(&v4, address, sizeof v4);
        if (v4.sin_addr.s_addr == htonl(INADDR_ANY))
            v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        return real(fd, (struct sockaddr *)&v4, sizeof v4);
    }
    if (address && address->sa_family == AF_INET6 && length >= sizeof(struct sockaddr_in6)) {
        struct sockaddr_in6 v6;
        memcpy(&v6, address, sizeof v6);
        if (IN6_IS_ADDR_UNSPECIFIED(&v6.sin6_addr)) {
            /* A dual-stack socket goes to the IPv4 loopback, the one that the tests connect to. */
            static const unsigned char mapped_loopback[16] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1};
            if (accepts_ipv4(fd))
                memcpy(&v6.sin6_addr, mapped_loopback, sizeof mapped_loopback);
            else
                v6.sin6_addr = in6addr_loopback;
        }
        return real(fd, (struct sockaddr *)&v6, sizeof v6);
    }
    return real(fd, address, length);
}
