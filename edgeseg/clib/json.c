/* Parsing: text to nodes. */
#include "json.h"

#include <stdlib.h>
#include <string.h>

struct reader {
    struct json *json;
    const unsigned char *at;
    const unsigned char *end;
    bool no_memory;
};

static bool value(struct reader *r, int depth);

static void skip_space(struct reader *r) {
    while (r->at < r->end &&
           (*r->at == ' ' || *r->at == '\t' || *r->at == '\n' || *r->at == '\r')) {
        r->at++;
    }
}

static bool take(struct reader *r, char c) {
    if (r->at < r->end && *r->at == (unsigned char)c) {
        r->at++;
        return true;
    }
    return false;
}

static bool add(struct reader *r, enum json_type type, uint32_t *index) {
    struct json *json = r->json;
    if (json->used == JSON_MAX_NODES) {
        return false;
    }
    if (json->used == json->room) {
        const uint32_t room = json->room == 0 ? 256 : 2 * json->room;
        struct json_node *nodes = realloc(json->nodes, room * sizeof *nodes);
        if (nodes == NULL) {
            r->no_memory = true;
            return false;
        }
        json->nodes = nodes;
        json->room = room;
    }
    *index = json->used++;
    json->nodes[*index] = (struct json_node){.type = (uint8_t)type, .next = json->used};
    return true;
}

static uint32_t offset(const struct reader *r, const unsigned char *at) {
    return (uint32_t)(at - (const unsigned char *)r->json->text);
}

/* Length of the UTF-8 sequence at s, or 0 where it is none: too short, too long for its value, a
 * surrogate or beyond U+10FFFF. */
static size_t utf8(const unsigned char *s, const unsigned char *end) {
    const size_t left = (size_t)(end - s);
    if (s[0] < 0x80) {
        return 1;
    }
    const size_t size = s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : 2;
    if (s[0] < 0xc2 || s[0] > 0xf4 || left < size) {
        return 0;
    }
    for (size_t i = 1; i < size; i++) {
        if ((s[i] & 0xc0) != 0x80) {
            return 0;
        }
    }
    const bool bad = (s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f) ||
                     (s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] > 0x8f);
    return bad ? 0 : size;
}

/* Four hexadecimal digits, or -1. */
static int32_t hex4(const unsigned char *s, const unsigned char *end) {
    int32_t result = 0;
    if (end - s < 4) {
        return -1;
    }
    for (int i = 0; i < 4; i++) {
        const unsigned char c = s[i];
        int digit = -1;
        if (c >= '0' && c <= '9') {
            digit = c - '0';
        } else if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f') {
            digit = (c | 0x20) - 'a' + 10;
        }
        if (digit < 0) {
            return -1;
        }
        result = 16 * result + digit;
    }
    return result;
}

size_t json_escape(const unsigned char *s, const unsigned char *end, uint32_t *code) {
    static const char letters[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
    if (s == end) {
        return 0;
    }
    if (*s != 'u') {
        const char *found = *s == '\0' ? NULL : strchr(letters, *s);
        *code = found == NULL ? 0 : (unsigned char)meanings[found - letters];
        return found == NULL ? 0 : 1;
    }
    const int32_t first = hex4(s + 1, end);
    if (first < 0xd800 || first > 0xdfff) {
        *code = first < 0 ? 0 : (uint32_t)first;
        return first < 0 ? 0 : 5;
    }
    if (first > 0xdbff || end - s < 11 || s[5] != '\\' || s[6] != 'u') {
        return 0;
    }
    const int32_t second = hex4(s + 7, end);
    if (second < 0xdc00 || second > 0xdfff) {
        return 0;
    }
    *code = 0x10000 + (((uint32_t)first - 0xd800) << 10) + ((uint32_t)second - 0xdc00);
    return 11;
}

static bool string(struct reader *r) {
    uint32_t index;
    if (!take(r, '"') || !add(r, JSON_STRING, &index)) {
        return false;
    }
    const unsigned char *start = r->at;
    bool escaped = false;
    while (r->at < r->end && *r->at != '"') {
        uint32_t code;
        size_t size;
        if (*r->at < 0x20) {
            return false;
        }
        if (*r->at == '\\') {
            escaped = true;
            r->at++;
            size = json_escape(r->at, r->end, &code);
        } else {
            size = utf8(r->at, r->end);
        }
        if (size == 0) {
            return false;
        }
        r->at += size;
    }
    struct json_node *node = &r->json->nodes[index];
    node->start = offset(r, start);
    node->length = (uint32_t)(r->at - start);
    node->escaped = escaped;
    return take(r, '"');
}

static bool digits(struct reader *r) {
    const unsigned char *start = r->at;
    while (r->at < r->end && *r->at >= '0' && *r->at <= '9') {
        r->at++;
    }
    return r->at > start;
}

static bool number(struct reader *r) {
    uint32_t index;
    if (!add(r, JSON_NUMBER, &index)) {
        return false;
    }
    const unsigned char *start = r->at;
    bool integer = true;
    (void)take(r, '-');
    if (!take(r, '0') && !digits(r)) {
        return false;
    }
    if (take(r, '.')) {
        integer = false;
        if (!digits(r)) {
            return false;
        }
    }
    if (take(r, 'e') || take(r, 'E')) {
        integer = false;
        if (!take(r, '+')) {
            (void)take(r, '-');
        }
        if (!digits(r)) {
            return false;
        }
    }
    struct json_node *node = &r->json->nodes[index];
    node->start = offset(r, start);
    node->length = (uint32_t)(r->at - start);
    node->integer = integer;
    return true;
}

static bool word(struct reader *r, const char *text, enum json_type type) {
    const size_t length = strlen(text);
    uint32_t index;
    if ((size_t)(r->end - r->at) < length || memcmp(r->at, text, length) != 0) {
        return false;
    }
    r->at += length;
    return add(r, type, &index);
}

static bool key_is_new(const struct json *json, uint32_t object, uint32_t key) {
    const struct json_node *wanted = &json->nodes[key];
    for (uint32_t i = object + 1; i < key; i = json->nodes[json->nodes[i].next].next) {
        const struct json_node *other = &json->nodes[i];
        if (other->length == wanted->length &&
            memcmp(json->text + other->start, json->text + wanted->start, wanted->length) == 0) {
            return false;
        }
    }
    return true;
}

static bool container(struct reader *r, int depth, bool object) {
    const char close = object ? '}' : ']';
    uint32_t index, count = 0;
    r->at++;
    if (depth == JSON_MAX_DEPTH || !add(r, object ? JSON_OBJECT : JSON_ARRAY, &index)) {
        return false;
    }
    skip_space(r);
    bool more = !take(r, close);
    while (more) {
        if (object) {
            const uint32_t key = r->json->used;
            skip_space(r);
            if (count == JSON_MAX_MEMBERS || !string(r) || !key_is_new(r->json, index, key)) {
                return false;
            }
            skip_space(r);
            if (!take(r, ':')) {
                return false;
            }
        }
        if (!value(r, depth + 1)) {
            return false;
        }
        count++;
        skip_space(r);
        more = take(r, ',');
        if (!more && !take(r, close)) {
            return false;
        }
    }
    r->json->nodes[index].count = count;
    r->json->nodes[index].next = r->json->used;
    return true;
}

static bool value(struct reader *r, int depth) {
    skip_space(r);
    if (r->at == r->end) {
        return false;
    }
    switch (*r->at) {
    case '{':
        return container(r, depth, true);
    case '[':
        return container(r, depth, false);
    case '"':
        return string(r);
    case 'n':
        return word(r, "null", JSON_NULL);
    case 't':
        return word(r, "true", JSON_TRUE);
    case 'f':
        return word(r, "false", JSON_FALSE);
    default:
        return number(r);
    }
}

enum json_outcome json_parse(struct json *json, const char *text, size_t length) {
    *json = (struct json){.text = text, .length = length};
    if (length > JSON_MAX_BYTES) {
        return JSON_INVALID;
    }
    struct reader r = {.json = json, .at = (const unsigned char *)text};
    r.end = r.at + length;
    bool valid = value(&r, 0);
    skip_space(&r);
    if (valid && r.at == r.end) {
        return JSON_OK;
    }
    json_free(json);
    return r.no_memory ? JSON_NO_MEMORY : JSON_INVALID;
}

void json_free(struct json *json) {
    free(json->nodes);
    json->nodes = NULL;
}
