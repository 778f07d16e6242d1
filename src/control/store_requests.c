// SPDX-License-Identifier: Apache-2.0
/* What a welcomed client may ask of the store, and what it is told. */
#include "control/store_serving.h"

static void reply(struct store_server *server, struct connection *c, const struct wire_frame *frame,
                  muster_status status, const struct store_key *key, bool with_value)
{
    connection_answer(c, &(struct answer){.type = WIRE_REPLY,
                                          .status = status,
                                          .request = frame->request,
                                          .after = server->keys.revision,
                                          .revision = key ? key->revision : 0,
                                          .key = key,
                                          .with_value = with_value,
                                          .number = !key,
                                          .peer = -1});
}

static void handle_get(struct store_server *server, struct connection *c, const struct wire_frame *frame,
                       struct socket_message *message)
{
    (void)message;
    struct store_key_name name;
    if (!store_key_parse(frame->key, frame->key_bytes, server->config.ranks, &name)) {
        connection_complain(c, "asked for \"%.*s\", which is no key", (int)frame->key_bytes, frame->key);
        reply(server, c, frame, MUSTER_ERR_ARGUMENT, NULL, false);
        return;
    }
    reply(server, c, frame, MUSTER_OK, store_keys_find(&server->keys, &name), true);
}

static bool swap_loses(const struct wire_frame *frame, const struct store_key *key)
{
    uint64_t revision = key && !key->gone ? key->revision : 0;
    return frame->type == WIRE_SWAP && frame->key_revision != revision;
}

/* One that loses changes nothing, and a late proposal for an epoch that has gone by is no offence: it just loses. */
static bool view_is_acceptable(struct store_server *server, const struct wire_frame *frame)
{
    struct view next, now;
    const struct store_key *key = server->keys.view;
    int ranks = server->config.ranks;
    if (swap_loses(frame, key))
        return true;
    if (wire_get_view(frame->value, frame->value_bytes, ranks, &next) != 0)
        return false;
    return !key || wire_get_view(key->value, key->value_bytes, ranks, &now) != 0 || next.epoch >= now.epoch;
}

static bool record_is_acceptable(const struct connection *c, const struct wire_frame *frame)
{
    struct record record;
    return wire_get_record(frame->value, frame->value_bytes, &record) == 0 && record.incarnation == c->incarnation;
}

/* NULL, or why this client may not write this. One client's bad value must not become everybody's bad value. */
static const char *write_objection(struct store_server *server, const struct connection *c,
                                   const struct wire_frame *frame, const struct store_key_name *name)
{
    if (name->kind == KEY_PRESENCE || name->kind == KEY_FENCED)
        return "the store alone writes it";
    if (name->kind == KEY_VIEW && frame->type != WIRE_SWAP)
        return "it only moves by compare-and-swap";
    if (name->kind == KEY_VIEW)
        return view_is_acceptable(server, frame) ? NULL : "the value is no view, or its epoch goes back";
    if (name->rank != c->rank)
        return "it belongs to another rank";
    if (name->kind == KEY_MEMBER && !record_is_acceptable(c, frame))
        return "the value is no record of this incarnation";
    return NULL;
}

static bool is_fenced(const struct store_server *server, const struct connection *c)
{
    return c->incarnation <= server->holder[c->rank].fenced;
}

/* No answer that waits to be sent to this client names a key that was deleted at this revision or before. */
static uint64_t unnamed_below(const struct connection *c, uint64_t revision)
{
    for (int i = 0; i < c->answers; i++) {
        const struct store_key *key = c->answer[(c->first + i) % CONNECTION_MAX_ANSWERS].key;
        if (key && key->gone && key->revision <= revision)
            revision = key->revision - 1;
    }
    return revision;
}

/* The newest change that every client has heard of, and no answer is about. */
static uint64_t heard_by_all(const struct store_server *server)
{
    uint64_t heard = server->keys.revision;
    for (int i = 0; i < STORE_MAX_CONNECTIONS; i++) {
        const struct connection *c = &server->connection[i];
        if (c->fd < 0)
            continue;
        heard = c->streaming && c->seen < heard ? c->seen : heard;
        heard = unnamed_below(c, heard);
    }
    return heard;
}

static void write_key(struct store_server *server, struct connection *c, const struct wire_frame *frame,
                      const struct store_key_name *name)
{
    struct store_key *key = store_keys_find(&server->keys, name);
    if (swap_loses(frame, key)) {
        reply(server, c, frame, MUSTER_ERR_AGAIN, key, true);
        return;
    }
    if (!key && name->kind == KEY_CONFIG && server->keys.configs[name->rank] == STORE_MAX_CONFIGS)
        store_keys_forget_configs(&server->keys, name->rank, heard_by_all(server));
    key = store_keys_write(&server->keys, name, frame->value, frame->value_bytes);
    reply(server, c, frame, key ? MUSTER_OK : MUSTER_ERR_MEMORY, key, false);
}

static void handle_write(struct store_server *server, struct connection *c, const struct wire_frame *frame,
                         struct socket_message *message)
{
    (void)message;
    if (is_fenced(server, c)) {
        reply(server, c, frame, MUSTER_ERR_EVICTED, NULL, false);
        return;
    }
    struct store_key_name name;
    const char *objection = "no key has this name";
    if (store_key_parse(frame->key, frame->key_bytes, server->config.ranks, &name))
        objection = write_objection(server, c, frame, &name);
    if (!objection) {
        write_key(server, c, frame, &name);
        return;
    }
    connection_complain(c, "refused %s of \"%.*s\": %s", wire_type_name(frame->type), (int)frame->key_bytes, frame->key,
                        objection);
    reply(server, c, frame, MUSTER_ERR_ARGUMENT, NULL, false);
}

static void handle_remove(struct store_server *server, struct connection *c, const struct wire_frame *frame,
                          struct socket_message *message)
{
    (void)message;
    struct store_key_name name;
    bool own = store_key_parse(frame->key, frame->key_bytes, server->config.ranks, &name) && name.kind == KEY_CONFIG &&
               name.rank == c->rank && !is_fenced(server, c);
    if (!own) {
        connection_complain(c, "refused to remove \"%.*s\"", (int)frame->key_bytes, frame->key);
        reply(server, c, frame, MUSTER_ERR_ARGUMENT, NULL, false);
        return;
    }
    struct store_key *key = store_keys_find(&server->keys, &name);
    if (key && !key->gone)
        store_keys_remove(&server->keys, key);
    reply(server, c, frame, MUSTER_OK, NULL, false);
}

static void handle_again(struct store_server *server, struct connection *c, const struct wire_frame *frame,
                         struct socket_message *message)
{
    (void)message;
    connection_answer(c, &(struct answer){.type = WIRE_STATE, .request = frame->request, .peer = -1});
    reply(server, c, frame, MUSTER_OK, NULL, false);
}

static void handle_leave(struct store_server *server, struct connection *c, const struct wire_frame *frame,
                         struct socket_message *message)
{
    (void)frame;
    (void)message;
    ranks_leave(server, c);
}

static bool names_a_peer(const struct store_server *server, const struct wire_frame *frame)
{
    return frame->peer >= 0 && frame->peer < server->config.ranks && frame->peer_incarnation > 0;
}

static void handle_fence(struct store_server *server, struct connection *c, const struct wire_frame *frame,
                         struct socket_message *message)
{
    (void)message;
    if (names_a_peer(server, frame) && !is_fenced(server, c))
        ranks_fence(server, frame->peer, frame->peer_incarnation);
    else
        connection_complain(c, "refused to fence rank %d, incarnation %u", frame->peer, frame->peer_incarnation);
}

static void handle_share(struct store_server *server, struct connection *c, const struct wire_frame *frame,
                         struct socket_message *message)
{
    (void)frame;
    if (message->fd < 0 || is_fenced(server, c)) {
        connection_complain(c, "refused its memory: %s", message->fd < 0 ? "no descriptor came" : "it is fenced");
        return;
    }
    ranks_share(server, c, message->fd);
    message->fd = -1;
}

static void handle_ask(struct store_server *server, struct connection *c, const struct wire_frame *frame,
                       struct socket_message *message)
{
    (void)message;
    if (!names_a_peer(server, frame)) {
        connection_complain(c, "asked for the memory of rank %d, incarnation %u", frame->peer, frame->peer_incarnation);
        return;
    }
    connection_answer(c, &(struct answer){.type = WIRE_MEMORY,
                                          .request = frame->request,
                                          .peer = frame->peer,
                                          .peer_incarnation = frame->peer_incarnation});
}

static void handle_ping(struct store_server *server, struct connection *c, const struct wire_frame *frame,
                        struct socket_message *message)
{
    (void)server;
    (void)message;
    connection_answer(c, &(struct answer){.type = WIRE_PONG, .request = frame->request, .peer = -1});
}

typedef void handler(struct store_server *server, struct connection *c, const struct wire_frame *frame,
                     struct socket_message *message);

static handler *const handlers[WIRE_TYPES] = {
    [WIRE_GET] = handle_get,       [WIRE_PUT] = handle_write,   [WIRE_SWAP] = handle_write,
    [WIRE_AGAIN] = handle_again,   [WIRE_LEAVE] = handle_leave, [WIRE_FENCE] = handle_fence,
    [WIRE_SHARE] = handle_share,   [WIRE_ASK] = handle_ask,     [WIRE_PING] = handle_ping,
    [WIRE_REMOVE] = handle_remove,
};

/* NULL, or why nothing that this client says can be believed. */
const char *requests_objection(const struct store_server *server, const struct connection *c,
                               const struct wire_frame *frame)
{
    if (c->rank < 0)
        return "it has not said hello";
    if (frame->type == WIRE_HELLO)
        return "it says hello twice";
    if (!handlers[frame->type])
        return "a client does not send this";
    if (frame->store_id != server->id)
        return "it means another store";
    if (frame->rank != c->rank || frame->incarnation != c->incarnation)
        return "it speaks for another rank or incarnation";
    if (frame->request <= c->last_request)
        return "its request number goes back";
    if (frame->revision < c->last_revision || frame->revision > server->keys.revision)
        return "the revision that it claims to know goes back, or is of the future";
    return NULL;
}

void requests_handle(struct store_server *server, struct connection *c, const struct wire_frame *frame,
                     struct socket_message *message)
{
    handlers[frame->type](server, c, frame, message);
}
