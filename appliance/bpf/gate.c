/*
 * The gate: an XDP program on the LAN interfaces, which sees each packet of a client before the network stack does.
 *
 * compile.py has bcc build it, gate.py attaches it and fills its maps, layout.py has the same structures for Python.
 * It looks at nothing but the SYNs that begin connections to mail ports: those of locked clients it drops, the others
 * it counts, together with the servers they go to. Whatever it does not understand it passes: the rules of nft behind
 * it know the locks as well and see packets put together.
 *
 * IN_FORCE, CLIENTS and NETWORKS, the sizes of the maps, and BITS, that of a sketch, come from layout.py.
 */
#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/ipv6.h>
#include <uapi/linux/tcp.h>

#define VLAN_TAGS 2
#define EXTENSIONS 6           /* headers between IPv6 and TCP; a sane packet has none */
#define MINUTE 60000000000ULL  /* ns */
#define WORDS (BITS / 64)
#define SEEN_AS_IPV4 bpf_htonl(0xffff)

/* IPv4 addresses are written ::ffff:a.b.c.d, so that each map serves both families. */
struct address {
    __be32 word[4];
};

struct network {
    u32 length;
    struct address address;
};

struct settings {
    u64 source;            /* what gate.c and the sizes were when this was compiled; for gate.py */
    u64 half;              /* ns; half of fanout_period */
    u32 most;              /* bits of a sketch that may be set; 0: nobody is reported */
    u32 talk;              /* SYNs a minute that a locked client has left */
    u32 seed;              /* nobody outside shall know which servers share a bit */
    u32 unused;
    u64 taken[1024];       /* intercept_ports, a bit for each port */
};

struct lock {
    u64 deadline;          /* ns since boot, suspended time included; 0: endless */
    u64 minute;            /* when the minute began in which */
    u64 talked;            /* this many SYNs were passed */
    u64 dropped;
};

/*
 * Two bitmaps of half a period each, one bit set for each server: what is set in either tells how many different servers
 * the last half to whole period had. `set` and `fresh` count bits, so that nothing has to be summed up for a packet.
 */
struct client {
    u64 syns;
    u64 dropped;
    u64 seen;              /* ns since boot */
    u64 turned;            /* when `now` was begun */
    u32 set;               /* bits in `now` or `before` */
    u32 fresh;             /* bits in `now` */
    u64 now[WORDS];
    u64 before[WORDS];
};

struct suspect {
    struct address address;
    u64 set;
};

struct syn {
    struct address from;
    struct address to;
    u16 port;              /* in the host's order, as nothing else here */
    u16 family;
};

BPF_ARRAY(configured, struct settings, 1);
BPF_F_TABLE("hash", struct address, struct lock, locks, IN_FORCE, BPF_F_NO_PREALLOC);
BPF_TABLE("lru_hash", struct address, struct client, clients, CLIENTS);
BPF_F_TABLE("lpm_trie", struct network, u64, trusted_clients, NETWORKS, BPF_F_NO_PREALLOC);
BPF_F_TABLE("lpm_trie", struct network, u64, trusted_servers, NETWORKS, BPF_F_NO_PREALLOC);
BPF_QUEUE(suspects, struct suspect, 1024);
BPF_ARRAY(blank, struct client, 1); /* a new client is too large for the stack */

/* Give where the TCP header begins, or NULL, and the addresses. Fragments have none: the stack puts them together. */
static __always_inline struct tcphdr *after_ipv4(void *at, void *end, struct syn *syn)
{
    struct iphdr *ip = at;

    if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl < 5 || ip->protocol != IPPROTO_TCP)
        return NULL;
    if (ip->frag_off & bpf_htons(0x3fff) || bpf_ntohs(ip->tot_len) < ip->ihl * 4 + sizeof(struct tcphdr))
        return NULL;
    syn->family = 2;
    syn->from.word[2] = syn->to.word[2] = SEEN_AS_IPV4;
    syn->from.word[3] = ip->saddr;
    syn->to.word[3] = ip->daddr;
    return at + ip->ihl * 4;
}

static __always_inline struct tcphdr *after_ipv6(void *at, void *end, struct syn *syn)
{
    struct ipv6hdr *ip = at;
    u8 next;
    int extension;

    if ((void *)(ip + 1) > end || ip->version != 6)
        return NULL;
    __builtin_memcpy(&syn->from, &ip->saddr, sizeof(syn->from));
    __builtin_memcpy(&syn->to, &ip->daddr, sizeof(syn->to));
    /* Nobody may pass for an IPv4 client, not even by an address that no router would take. */
    if (!syn->from.word[0] && !syn->from.word[1] && syn->from.word[2] == SEEN_AS_IPV4)
        return NULL;
    syn->family = 10;
    next = ip->nexthdr;
    at += sizeof(*ip);
#pragma unroll
    for (extension = 0; extension < EXTENSIONS; extension++) {
        u8 *header = at;

        if (next != IPPROTO_HOPOPTS && next != IPPROTO_ROUTING && next != IPPROTO_DSTOPTS)
            break;
        if (at + 8 > end)
            return NULL;
        next = header[0];
        at += 8 + header[1] * 8;
    }
    return next == IPPROTO_TCP ? at : NULL;
}

/* Read what begins a connection; 1 if this packet does. */
static __always_inline int read_syn(struct xdp_md *ctx, struct syn *syn)
{
    void *at = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
    struct ethhdr *ethernet = at;
    struct tcphdr *tcp = NULL;
    __be16 kind;
    int tag;

    if ((void *)(ethernet + 1) > end)
        return 0;
    kind = ethernet->h_proto;
    at += sizeof(*ethernet);
#pragma unroll
    for (tag = 0; tag < VLAN_TAGS; tag++) {
        if (kind != bpf_htons(ETH_P_8021Q) && kind != bpf_htons(ETH_P_8021AD))
            break;
        if (at + 4 > end)
            return 0;
        kind = *(__be16 *)(at + 2);
        at += 4;
    }
    if (kind == bpf_htons(ETH_P_IP))
        tcp = after_ipv4(at, end, syn);
    else if (kind == bpf_htons(ETH_P_IPV6))
        tcp = after_ipv6(at, end, syn);
    if (!tcp || (void *)(tcp + 1) > end || !tcp->syn || tcp->ack)
        return 0;
    syn->port = bpf_ntohs(tcp->dest);
    return 1;
}

/* Whether a packet is for this router itself, whose own mail server is nobody's business here. */
static __always_inline int is_for_router(struct xdp_md *ctx, struct syn *syn)
{
    struct bpf_fib_lookup way = {};

    way.family = syn->family;
    way.l4_protocol = IPPROTO_TCP;
    way.ifindex = ctx->ingress_ifindex;
    if (syn->family == 2) {
        way.ipv4_src = syn->from.word[3];
        way.ipv4_dst = syn->to.word[3];
    } else {
        __builtin_memcpy(way.ipv6_src, &syn->from, sizeof(syn->from));
        __builtin_memcpy(way.ipv6_dst, &syn->to, sizeof(syn->to));
    }
    return bpf_fib_lookup(ctx, &way, sizeof(way), 0) == BPF_FIB_LKUP_RET_NOT_FWDED;
}

static __always_inline int may_talk(struct lock *lock, u64 now, u32 allowed)
{
    if (now - lock->minute >= MINUTE) {
        lock->minute = now;
        lock->talked = 0;
    }
    if (lock->talked >= allowed)
        return 0;
    lock->talked++;
    return 1;
}

/* The sketch's bit for a server: the finaliser of MurmurHash3 after each word. */
static __always_inline u32 bit_of(struct address *server, u32 seed)
{
    u32 hash = seed;
    int i;

#pragma unroll
    for (i = 0; i < 4; i++) {
        hash ^= server->word[i];
        hash = (hash ^ hash >> 16) * 0x85ebca6b;
        hash = (hash ^ hash >> 13) * 0xc2b2ae35;
        hash ^= hash >> 16;
    }
    return hash & (BITS - 1);
}

/* Let a sketch forget what is older than a period. */
static __always_inline void turn(struct client *client, u64 now, u64 half)
{
    u64 halves = half ? (now - client->turned) / half : 0;
    int i;

    if (!halves)
        return;
#pragma unroll
    for (i = 0; i < WORDS; i++) {
        client->before[i] = halves == 1 ? client->now[i] : 0;
        client->now[i] = 0;
    }
    client->set = halves == 1 ? client->fresh : 0;
    client->fresh = 0;
    client->turned += halves * half;
}

static __always_inline void forget(struct client *client, u64 now)
{
    int i;

#pragma unroll
    for (i = 0; i < WORDS; i++)
        client->now[i] = client->before[i] = 0;
    client->set = client->fresh = 0;
    client->turned = now;
}

/* Remember a server, and report the client when it has too many; then it begins anew. */
static __always_inline void remember(struct client *client, struct syn *syn, struct settings *settings, u64 now)
{
    u32 bit = bit_of(&syn->to, settings->seed), word = bit / 64;
    u64 mask = 1ULL << (bit % 64);
    struct suspect suspect = {};

    turn(client, now, settings->half);
    if (client->now[word] & mask)
        return;
    client->now[word] |= mask;
    client->fresh++;
    if (client->before[word] & mask)
        return;
    client->set++;
    if (!settings->most || client->set <= settings->most)
        return;
    suspect.address = syn->from;
    suspect.set = client->set;
    if (suspects.push(&suspect, 0))
        return; /* full: the next server tries again */
    forget(client, now);
}

static __always_inline struct client *client_of(struct address *address, u64 now)
{
    struct client *client = clients.lookup(address), *empty;
    int zero = 0;

    if (client)
        return client;
    empty = blank.lookup(&zero);
    if (!empty)
        return NULL;
    clients.update(address, empty);
    client = clients.lookup(address);
    if (client)
        client->turned = now;
    return client;
}

int gate(struct xdp_md *ctx)
{
    struct syn syn = {};
    struct network from = {.length = 128}, to = {.length = 128};
    struct settings *settings;
    struct client *client;
    struct lock *lock;
    int zero = 0, mail, taken;
    u64 now;

    if (!read_syn(ctx, &syn))
        return XDP_PASS;
    settings = configured.lookup(&zero);
    if (!settings)
        return XDP_PASS;
    taken = settings->taken[syn.port / 64] >> (syn.port % 64) & 1;
    mail = syn.port == 25 || syn.port == 465 || syn.port == 587;
    if (!taken && !mail)
        return XDP_PASS;
    from.address = syn.from;
    to.address = syn.to;
    if (trusted_clients.lookup(&from) || trusted_servers.lookup(&to))
        return XDP_PASS;

    now = bpf_ktime_get_boot_ns();
    client = client_of(&syn.from, now);
    if (!client)
        return XDP_PASS;
    client->seen = now;
    lock_xadd(&client->syns, 1);
    lock = locks.lookup(&syn.from);
    if (!lock || (lock->deadline && lock->deadline <= now)) {
        if (mail)
            remember(client, &syn, settings, now);
        return XDP_PASS;
    }
    if (!taken || may_talk(lock, now, settings->talk) || is_for_router(ctx, &syn))
        return XDP_PASS;
    lock_xadd(&client->dropped, 1);
    lock_xadd(&lock->dropped, 1);
    return XDP_DROP;
}
