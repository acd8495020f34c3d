/* Reading what has been parsed. */
#define _GNU_SOURCE /* strtod_l */
#include "json.h"

#include <locale.h>
#include <stdlib.h>
#include <string.h>

bool json_is(const struct json_node *node, enum json_type type) {
    return node != NULL && node->type == (uint8_t)type;
}

const struct json_node *json_first(const struct json *json, const struct json_node *node) {
    if ((!json_is(node, JSON_ARRAY) && !json_is(node, JSON_OBJECT)) || node->count == 0) {
        return NULL;
    }
    return &json->nodes[(node - json->nodes) + 1];
}

const struct json_node *json_next(const struct json *json, const struct json_node *parent,
                                  const struct json_node *item) {
    return item->next < parent->next ? &json->nodes[item->next] : NULL;
}

bool json_equals(const struct json *json, const struct json_node *node, const char *text) {
    return json_is(node, JSON_STRING) && !node->escaped && node->length == strlen(text) &&
           memcmp(json->text + node->start, text, node->length) == 0;
}

const struct json_node *json_member(const struct json *json, const struct json_node *node,
                                    const char *key) {
    if (!json_is(node, JSON_OBJECT)) {
        return NULL;
    }
    const struct json_node *item = json_first(json, node);
    while (item != NULL) {
        const struct json_node *member = json_next(json, node, item);
        if (json_equals(json, item, key)) {
            return member;
        }
        item = json_next(json, node, member);
    }
    return NULL;
}

bool json_integer(const struct json *json, const struct json_node *node, int64_t *result) {
    if (!json_is(node, JSON_NUMBER) || !node->integer) {
        return false;
    }
    const char *s = json->text + node->start, *end = s + node->length;
    const bool negative = *s == '-';
    int64_t sum = 0; /* negative all along: there is one more of those */
    for (s += negative; s < end; s++) {
        if (__builtin_mul_overflow(sum, 10, &sum) ||
            __builtin_sub_overflow(sum, *s - '0', &sum)) {
            return false;
        }
    }
    if (!negative && sum == INT64_MIN) {
        return false;
    }
    *result = negative ? sum : -sum;
    return true;
}

bool json_number(const struct json *json, const struct json_node *node, double *result) {
    char copy[64];
    if (!json_is(node, JSON_NUMBER) || node->length >= sizeof copy) {
        return false;
    }
    memcpy(copy, json->text + node->start, node->length);
    copy[node->length] = '\0';
    /* The program's locale may want a comma where JSON has a point. */
    locale_t plain = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    if (plain == (locale_t)0) {
        return false;
    }
    const double found = strtod_l(copy, NULL, plain);
    freelocale(plain);
    if (!(found > -3e38 && found < 3e38)) {
        return false;
    }
    *result = found;
    return true;
}

static char *put_utf8(char *out, uint32_t code) {
    if (code < 0x80) {
        *out++ = (char)code;
    } else if (code < 0x800) {
        *out++ = (char)(0xc0 | code >> 6);
        *out++ = (char)(0x80 | (code & 0x3f));
    } else if (code < 0x10000) {
        *out++ = (char)(0xe0 | code >> 12);
        *out++ = (char)(0x80 | (code >> 6 & 0x3f));
        *out++ = (char)(0x80 | (code & 0x3f));
    } else {
        *out++ = (char)(0xf0 | code >> 18);
        *out++ = (char)(0x80 | (code >> 12 & 0x3f));
        *out++ = (char)(0x80 | (code >> 6 & 0x3f));
        *out++ = (char)(0x80 | (code & 0x3f));
    }
    return out;
}

char *json_string(const struct json *json, const struct json_node *node, bool *memory) {
    *memory = false;
    if (!json_is(node, JSON_STRING)) {
        return NULL;
    }
    /* Decoding never makes it longer: \uXXXX is six bytes for at most three. */
    char *result = malloc((size_t)node->length + 1);
    if (result == NULL) {
        *memory = true;
        return NULL;
    }
    const unsigned char *s = (const unsigned char *)json->text + node->start;
    const unsigned char *end = s + node->length;
    char *out = result;
    while (s < end) {
        uint32_t code = *s;
        if (*s == '\\') {
            s += 1 + json_escape(s + 1, end, &code);
            if (code == 0) {
                free(result);
                return NULL;
            }
            out = put_utf8(out, code);
        } else {
            *out++ = (char)*s++;
        }
    }
    *out = '\0';
    return result;
}
