/* A float's bits, with those of negative numbers turned over, sort like the float: so both types
 * of score are compared as integers, many at a time, and float16 without being widened. */
#include "summary.h"

#include <limits.h>
#include <math.h>
#include <string.h>

#define BLOCK 4096 /* pixels: their number fits the counter of a block, and they fit the cache */

static double half_to_double(int32_t bits) {
    const int exponent = bits >> 10 & 31, fraction = bits & 0x3ff;
    double value;
    if (exponent == 31) {
        value = fraction == 0 ? INFINITY : NAN;
    } else if (exponent == 0) {
        value = fraction * 0x1p-24;
    } else {
        value = ldexp(fraction | 0x400, exponent - 25);
    }
    return (bits & 0x8000) != 0 ? -value : value;
}

static inline int16_t half_key(int16_t bits) {
    return (int16_t)(bits ^ ((bits >> 15) & 0x7fff));
}

static inline int32_t float_key(int32_t bits) { return bits ^ ((bits >> 31) & 0x7fffffff); }

static double half_value(int32_t key) {
    return half_to_double((uint16_t)half_key((int16_t)key));
}

static double float_value(int32_t key) {
    const int32_t bits = float_key(key);
    float value;
    memcpy(&value, &bits, sizeof value);
    return (double)value;
}

/* The smallest key whose value is not below the threshold: found by halving, as keys sort like
 * their values. One beyond the largest finite value where none is. */
static int64_t first_key(double threshold, int64_t low, int64_t high, double (*value)(int32_t)) {
    while (low <= high) {
        const int64_t middle = low + (high - low) / 2;
        if (value((int32_t)middle) < threshold) {
            low = middle + 1;
        } else {
            high = middle - 1;
        }
    }
    return low;
}

#define SUMMARIZE(name, type, key_of, lowest)                                                      \
    static int64_t name(const type *bits, const uint8_t *region, int64_t pixels, int64_t first,    \
                        type *highest) {                                                           \
        const type least = first > (lowest) ? (type)first : (lowest);                              \
        type most = (lowest);                                                                      \
        int64_t total = 0;                                                                         \
        for (int64_t start = 0; start < pixels; start += BLOCK) {                                  \
            const int count = (int)(pixels - start < BLOCK ? pixels - start : BLOCK);              \
            type here = 0;                                                                         \
            for (int i = 0; i < count; i++) {                                                      \
                const type found = key_of(bits[start + i]);                                        \
                const type key = region == NULL || region[start + i] != 0 ? found : (lowest);      \
                most = key > most ? key : most;                                                    \
                here = (type)(here + (key >= least));                                              \
            }                                                                                      \
            total += here;                                                                         \
        }                                                                                          \
        *highest = most;                                                                           \
        return total;                                                                              \
    }

SUMMARIZE(summarize_halves, int16_t, half_key, INT16_MIN)
SUMMARIZE(summarize_floats, int32_t, float_key, INT32_MIN)

void summarize(const void *score, int score_type, const uint8_t *region, int64_t counted,
               int64_t pixels, double threshold, edgeseg_summary *summary) {
    /* Keys of the finite numbers: those of -max to max. */
    const int64_t half_max = 0x7bff, float_max = 0x7f7fffff;
    const double wanted = isnan(threshold) ? INFINITY : threshold;
    int64_t above;
    if (score_type == EDGESEG_SCORE_FLOAT16) {
        int16_t highest;
        const int64_t first = first_key(wanted, -half_max - 1, half_max, half_value);
        above = summarize_halves(score, region, pixels, first, &highest);
        summary->max = half_value(highest);
    } else {
        int32_t highest;
        const int64_t first = first_key(wanted, -float_max - 1, float_max, float_value);
        above = summarize_floats(score, region, pixels, first, &highest);
        summary->max = float_value(highest);
    }
    summary->fraction = isnan(threshold) ? -1.0 : (double)above / (double)counted;
    summary->pixels = counted;
}
