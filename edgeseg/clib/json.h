/* A strict reader of JSON (RFC 8259) for small documents from untrusted files. */
#ifndef EDGESEG_JSON_H
#define EDGESEG_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bounds: a document that exceeds one is refused, whatever it says. */
#define JSON_MAX_BYTES ((size_t)16 << 20)
#define JSON_MAX_DEPTH 64
#define JSON_MAX_NODES (1u << 18)
#define JSON_MAX_MEMBERS 1024u /* of one object */

enum json_type {
    JSON_NULL,
    JSON_FALSE,
    JSON_TRUE,
    JSON_NUMBER,
    JSON_STRING,
    JSON_ARRAY,
    JSON_OBJECT
};

struct json_node {
    uint32_t start; /* of a string's content or a number, in the text */
    uint32_t length;
    uint32_t next;  /* index of the node after this one and all in it */
    uint32_t count; /* elements of an array, members of an object */
    uint8_t type;   /* enum json_type */
    bool escaped;   /* the string has backslashes */
    bool integer;   /* the number has neither point nor exponent */
};

struct json {
    const char *text; /* the caller's, which must live as long */
    size_t length;
    struct json_node *nodes;
    uint32_t used, room;
};

enum json_outcome { JSON_OK, JSON_INVALID, JSON_NO_MEMORY };

/* nodes[0] is the document. Keys of an object differ from each other. */
enum json_outcome json_parse(struct json *json, const char *text, size_t length);
void json_free(struct json *json);

/* The value of a member; NULL where node is NULL or no object, or has no such key. */
const struct json_node *json_member(const struct json *json, const struct json_node *node,
                                    const char *key);

/* for (item = json_first(j, list); item != NULL; item = json_next(j, list, item)). Of an object,
 * keys and values in turn. */
const struct json_node *json_first(const struct json *json, const struct json_node *node);
const struct json_node *json_next(const struct json *json, const struct json_node *parent,
                                  const struct json_node *item);

bool json_is(const struct json_node *node, enum json_type type);
/* Whether node is a string that equals text. */
bool json_equals(const struct json *json, const struct json_node *node, const char *text);
/* Whether node is an integer that fits; *value is set only then. */
bool json_integer(const struct json *json, const struct json_node *node, int64_t *value);
/* Whether node is a number between -3e38 and 3e38; *value is set only then. */
bool json_number(const struct json *json, const struct json_node *node, double *value);
/* Decoded and ended by NUL, to be freed by the caller. NULL where node is no string or holds a
 * NUL (*memory false), or where memory is out (*memory true). */
char *json_string(const struct json *json, const struct json_node *node, bool *memory);

/* What follows a backslash at s: its length and its code point, or 0 where it is no escape. */
size_t json_escape(const unsigned char *s, const unsigned char *end, uint32_t *code);

#endif
