/* Decode steps of a small Llama-like model in float32 on the CPU, from token to token without leaving this file.

   A step of a small model is some hundred operations of a few microseconds each, so that calling them costs more than they do.
   Here a thread takes its share of the rows through all layers; rows do not look at each other, so threads meet once a step,
   to see whether enough rows have ended, and what a row computes does not depend on the rows beside it, to the last bit.

   The matrices come in panels: [out / PANEL][in][PANEL], zeros behind the last output (`native.py` lays them out). */

#include <float.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX__
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define W 16 /* floats of a vector */
#define ROWS 12 /* rows of a register block: ROWS * 2 accumulators, 2 of the panel */
#elif defined(__AVX__)
#define W 8
#define ROWS 6
#else
#define W 4
#define ROWS 6
#endif
#define PANEL (2 * W)
#define CHUNK 48 /* rows that go through the layers together */
#define TILE 64  /* keys that several rows read while they are near */
#define BLOCK 256 /* tokens of the vocabulary whose probabilities are summed together */
#define NEVER -1e30f
#define THREADS 64

typedef float vec __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(4 * W), aligned(4), may_alias));

typedef struct {
    const float *qkv, *qkv_bias, *head_norm, *out, *out_bias, *gate_up, *gate_up_bias, *down, *down_bias;
    float *kv; /* [2, capacity, kv_heads, columns, dim] of the rows' own tokens */
    float before_eps, between_eps, head_eps;
} Layer;

typedef struct {
    const float *const *kv; /* of each layer: [2, groups, kv_heads, width, dim] */
    const int64_t *lengths; /* [groups]; keys stand at the right */
    int64_t groups, width;
} Shared;

typedef struct {
    int64_t rows, steps, layers, hidden, inner, heads, kv_heads, dim, vocabulary;
    const Layer *layer;
    const float *embedding, *norm, *head, *rope; /* [V, D], [D], panels, [P, dim / 2, 2] */
    const float *head_bias;
    float norm_eps;
    int64_t capacity, columns, low, end; /* of the rows' own storage; column `end` is written first */
    const int64_t *start;                /* [rows] first column of each row */
    const float *bias;                   /* [rows, columns], NEVER where a row has no token; or NULL */
    const Shared *shared;
    const int64_t *member; /* [rows, 2] block and group; NULL where no prompts are shared */
    const int64_t *position, *pending;
    const double *uniform; /* [steps, rows]; NULL: the most probable token */
    float temperature;
    const int64_t *stops;
    int64_t stop_count, enough;
    uint8_t *ended; /* [rows] */
    int64_t threads;
    int64_t *token;                   /* [rows, steps] */
    float *logp, *logp_raw, *entropy; /* [rows, steps]; logp_raw may be NULL */
    float *logits;                    /* [rows, V] of one step, and nothing is drawn; or NULL */
} Call;

int64_t panel(void) { return PANEL; }

/* vectors ------------------------------------------------------------------------------------------------------------- */

#define INLINE static inline __attribute__((always_inline))

INLINE vec load(const float *x) { return *(const vec *)x; }
INLINE void store(float *x, vec v) { *(vec *)x = v; }
INLINE vec all(float x) { return x - (vec){0}; }
INLINE vec greater(vec a, vec b) {
    ints mask = a > b;
    return (vec)(((ints)a & mask) | ((ints)b & ~mask));
}

INLINE float sum(vec v) {
#ifdef __AVX__
#if W == 16
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256((__m512)v), _mm256_castpd_ps(_mm512_extractf64x4_pd((__m512d)v, 1)));
#else
    __m256 half = (__m256)v;
#endif
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    four = _mm_hadd_ps(four, four);
    return _mm_cvtss_f32(_mm_hadd_ps(four, four));
#else
    float total = 0;
    for (int i = 0; i < W; i++) total += v[i];
    return total;
#endif
}

INLINE float largest(vec v) {
    float most = v[0];
    for (int i = 1; i < W; i++) most = v[i] > most ? v[i] : most;
    return most;
}

/* exp(x) to two units in the last place, for x held to -87.3 .. 88. Polynomial of Cephes. */
INLINE vec exponential(vec x) {
    x = -greater(-greater(x, all(-87.3f)), all(-88.0f));
    vec n = (x * 1.44269504088896341f + 12582912.0f) - 12582912.0f;
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    return p * (vec)((__builtin_convertvector(n, ints) + 127) << 23);
}

INLINE float dot(const float *a, const float *b, int64_t n) {
    vec total = {0};
    int64_t i = 0;
    for (; i + W <= n; i += W) total += load(a + i) * load(b + i);
    float rest = 0;
    for (; i < n; i++) rest += a[i] * b[i];
    return sum(total) + rest;
}

/* products ------------------------------------------------------------------------------------------------------------ */

/* y [count, width] (+)= x [count, in] panel [in, PANEL] + bias, for a count that the compiler knows */
INLINE void block(const int count, const float *x, int64_t x_step, const float *panel, int64_t in, const float *bias,
                  int add, float *y, int64_t y_step, int64_t width) {
    vec left[ROWS], right[ROWS];
    for (int r = 0; r < count; r++) {
        left[r] = bias ? load(bias) : (vec){0};
        right[r] = bias ? load(bias + W) : (vec){0};
    }
    for (int64_t k = 0; k < in; k++) {
        vec a = load(panel + k * PANEL), b = load(panel + k * PANEL + W);
        for (int r = 0; r < count; r++) {
            vec value = all(x[r * x_step + k]);
            left[r] += value * a;
            right[r] += value * b;
        }
    }
    for (int r = 0; r < count; r++) {
        float *out = y + r * y_step, held[PANEL];
        if (width >= PANEL) {
            if (add) left[r] += load(out), right[r] += load(out + W);
            store(out, left[r]), store(out + W, right[r]);
            continue;
        }
        store(held, left[r]);
        store(held + W, right[r]);
        for (int64_t j = 0; j < width; j++) out[j] = add ? out[j] + held[j] : held[j];
    }
}

/* y [count, out] (+)= x [count, in] weight + bias */
static void product(const float *x, int64_t x_step, int64_t count, int64_t in, const float *weight, const float *bias,
                    int add, float *y, int64_t y_step, int64_t out) {
    for (int64_t first = 0; first < out; first += PANEL) {
        const float *here = weight + first * in, *shift = bias ? bias + first : NULL;
        for (int64_t row = 0; row < count; row += ROWS) {
            const float *from = x + row * x_step;
            float *to = y + row * y_step + first;
#define CASE(n) \
    case n: block(n, from, x_step, here, in, shift, add, to, y_step, out - first); break
            switch (count - row < ROWS ? count - row : ROWS) {
                CASE(1); CASE(2); CASE(3); CASE(4); CASE(5); CASE(6);
#if ROWS == 12
                CASE(7); CASE(8); CASE(9); CASE(10); CASE(11); CASE(12);
#endif
            }
#undef CASE
        }
    }
}

/* The stream divided by its root mean square; the norm's weight and sqrt(hidden) are in the matrix that follows. */
static void normed(const float *x, int64_t count, int64_t hidden, float eps, const float *weight, float *y) {
    for (int64_t row = 0; row < count; row++, x += hidden, y += hidden) {
        float scale = 1.0f / sqrtf(dot(x, x, hidden) + eps);
        for (int64_t i = 0; i < hidden; i++) y[i] = weight ? x[i] * scale * weight[i] : x[i] * scale;
    }
}

/* attention ----------------------------------------------------------------------------------------------------------- */

#if W > 4
/* The sums of four vectors. */
INLINE __m128 sums(vec a, vec b, vec c, vec d) {
#if W == 16
#define HALF(v) _mm256_add_ps(_mm512_castps512_ps256((__m512)v), _mm256_castpd_ps(_mm512_extractf64x4_pd((__m512d)v, 1)))
#else
#define HALF(v) (__m256) v
#endif
    __m256 ab = _mm256_hadd_ps(HALF(a), HALF(b)), cd = _mm256_hadd_ps(HALF(c), HALF(d));
    __m256 abcd = _mm256_hadd_ps(ab, cd);
    return _mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1));
#undef HALF
}
#endif

/* Scores [count] of a query on keys [count, dim]. */
INLINE void scored(const float *q, const float *keys, int64_t count, int64_t dim, float *score) {
    int64_t t = 0;
#if W > 4
    if (dim % W == 0)
        for (; t + 4 <= count; t += 4) {
            const float *k = keys + t * dim;
            vec a = {0}, b = {0}, c = {0}, d = {0};
            for (int64_t i = 0; i < dim; i += W) {
                vec part = load(q + i);
                a += part * load(k + i);
                b += part * load(k + dim + i);
                c += part * load(k + 2 * dim + i);
                d += part * load(k + 3 * dim + i);
            }
            _mm_storeu_ps(score + t, sums(a, b, c, d));
        }
#endif
    for (; t < count; t++) score[t] = dot(q, keys + t * dim, dim);
}

/* read [dim] += weight [count] values [count, dim] */
INLINE void gathered(const float *weight, const float *values, int64_t count, int64_t dim, float *read) {
    int64_t i = 0;
    for (; i + 4 * W <= dim; i += 4 * W) {
        vec a = load(read + i), b = load(read + i + W), c = load(read + i + 2 * W), d = load(read + i + 3 * W);
        for (int64_t t = 0; t < count; t++) {
            const float *v = values + t * dim + i;
            vec w = all(weight[t]);
            a += w * load(v);
            b += w * load(v + W);
            c += w * load(v + 2 * W);
            d += w * load(v + 3 * W);
        }
        store(read + i, a), store(read + i + W, b), store(read + i + 2 * W, c), store(read + i + 3 * W, d);
    }
    for (; i + W <= dim; i += W) {
        vec a = load(read + i);
        for (int64_t t = 0; t < count; t++) a += all(weight[t]) * load(values + t * dim + i);
        store(read + i, a);
    }
    for (; i < dim; i++)
        for (int64_t t = 0; t < count; t++) read[i] += weight[t] * values[t * dim + i];
}

/* exp(score - largest) in place [count]; returns their sum. The buffer has room for a vector more. */
static float softened(float *score, int64_t count) {
    for (int64_t t = count; t < count + W; t++) score[t] = NEVER;
    vec most = all(NEVER), total = {0};
    for (int64_t t = 0; t < count; t += W) most = greater(load(score + t), most);
    vec top = all(largest(most));
    for (int64_t t = 0; t < count; t += W) {
        vec e = exponential(load(score + t) - top);
        store(score + t, e);
        total += e;
    }
    return sum(total);
}

/* What `count` rows from `first` on, which share a prompt, read in one layer: read [count, heads * dim]. */
static void attended(const Call *c, int64_t index, int64_t first, int64_t count, int64_t end, const float *qkv, float *read,
                     float *scores) {
    const Layer *layer = &c->layer[index];
    int64_t dim = c->dim, per = c->heads / c->kv_heads, step = (c->heads + 2 * c->kv_heads) * dim;
    const Shared *shared = c->member ? &c->shared[c->member[2 * first]] : NULL;
    int64_t group = shared ? c->member[2 * first + 1] : 0, prompt = shared ? shared->lengths[group] : 0;
    int64_t room = prompt + end - c->low + 2 * W;
    for (int64_t head = 0; head < c->kv_heads; head++) {
        const float *keys = NULL, *values = NULL;
        if (prompt) {
            int64_t lines = shared->groups * c->kv_heads * shared->width * dim;
            keys = shared->kv[index] + ((group * c->kv_heads + head) * shared->width + shared->width - prompt) * dim;
            values = keys + lines;
        }
        for (int64_t t = 0; t < prompt; t += TILE)
            for (int64_t r = 0; r < count * per; r++)
                scored(qkv + (r / per) * step + (head * per + r % per) * dim, keys + t * dim,
                       prompt - t < TILE ? prompt - t : TILE, dim, scores + r * room + t);
        for (int64_t r = 0; r < count; r++) {
            int64_t row = first + r, begin = c->start[row] > c->low ? c->start[row] : c->low, own = end - begin;
            int64_t at = ((row * c->kv_heads + head) * c->columns + begin) * dim;
            const float *mine = layer->kv + at, *held = mine + c->capacity * c->kv_heads * c->columns * dim;
            for (int64_t g = 0; g < per; g++) {
                float *score = scores + (r * per + g) * room, *out = read + (r * c->heads + head * per + g) * dim;
                scored(qkv + r * step + (head * per + g) * dim, mine, own, dim, score + prompt);
                if (c->bias)
                    for (int64_t t = 0; t < own; t++) score[prompt + t] += c->bias[row * c->columns + begin + t];
                float scale = 1.0f / softened(score, prompt + own);
                for (int64_t t = 0; t < prompt + own; t++) score[t] *= scale;
                memset(out, 0, dim * sizeof(float));
                gathered(score + prompt, held, own, dim, out);
            }
        }
        for (int64_t t = 0; t < prompt; t += TILE)
            for (int64_t r = 0; r < count * per; r++)
                gathered(scores + r * room + t, values + t * dim, prompt - t < TILE ? prompt - t : TILE, dim,
                         read + ((r / per) * c->heads + head * per + r % per) * dim);
    }
}

/* The heads of a row: normed if the model does that, rotated, and its keys and values written to their column. */
static void turned(const Call *c, const Layer *layer, int64_t row, int64_t position, int64_t column, float *qkv) {
    int64_t dim = c->dim, heads = c->heads + c->kv_heads;
    const float *rope = c->rope + position * dim;
    for (int64_t h = 0; h < heads; h++) {
        float *x = qkv + h * dim;
        if (layer->head_norm) {
            float scale = 1.0f / sqrtf(dot(x, x, dim) + layer->head_eps);
            for (int64_t i = 0; i < dim; i++) x[i] *= scale * layer->head_norm[h * dim + i];
        }
        for (int64_t i = 0; i < dim; i += 2) {
            float a = x[i], b = x[i + 1];
            x[i] = a * rope[i] - b * rope[i + 1];
            x[i + 1] = a * rope[i + 1] + b * rope[i];
        }
    }
    for (int64_t h = 0; h < c->kv_heads; h++) {
        float *key = layer->kv + ((row * c->kv_heads + h) * c->columns + column) * dim;
        memcpy(key, qkv + (c->heads + h) * dim, dim * sizeof(float));
        memcpy(key + c->capacity * c->kv_heads * c->columns * dim, qkv + (heads + h) * dim, dim * sizeof(float));
    }
}

/* drawing ------------------------------------------------------------------------------------------------------------- */

/* Replace scores [size] by exp(heat (score - top)); returns their sum and adds sum(weight x exponent) to `mean`. */
INLINE double weighed(float *score, int64_t size, float top, float heat, float *mean) {
    vec total = {0}, inner = {0};
    float rest = 0;
    int64_t i = 0;
    for (; i + W <= size; i += W) {
        vec exponent = (load(score + i) - top) * heat, e = exponential(exponent);
        total += e;
        inner += e * exponent;
        store(score + i, e);
    }
    for (; i < size; i++) {
        float exponent = (score[i] - top) * heat, e = expf(exponent);
        rest += e;
        *mean += e * exponent;
        score[i] = e;
    }
    *mean += sum(inner);
    return (double)(sum(total) + rest);
}

/* Draw a row's next token from its logits [V], which are spent; returns 0 where they are not finite. */
static int drawn(const Call *c, float *logits, int64_t row, int64_t step, double *mass) {
    int64_t size = c->vocabulary, at = row * c->steps + step, token = 0;
    float top = logits[0], mean = 0, heat = 1.0f / c->temperature;
    double total = 0, plain = 0;
    for (int64_t i = 1; i < size; i++)
        if (logits[i] > top) top = logits[i], token = i;
    if (c->logp_raw)
        for (int64_t i = 0; i < size; i++) plain += expf(logits[i] - top);
    for (int64_t first = 0; first < size; first += BLOCK)
        total += mass[first / BLOCK] = weighed(logits + first, size - first < BLOCK ? size - first : BLOCK, top, heat, &mean);
    if (!isfinite(total) || !isfinite(mean)) return 0;
    if (c->uniform) {
        double goal = c->uniform[step * c->rows + row] * total, before = 0;
        int64_t first = 0;
        for (; first + BLOCK < size && before + mass[first / BLOCK] <= goal; first += BLOCK) before += mass[first / BLOCK];
        int64_t last = first + BLOCK < size ? first + BLOCK : size;
        for (token = first; token < last; token++)
            if ((before += logits[token]) > goal) break;
        if (token == last) /* the block's sum was rounded up: its last token that can be drawn */
            for (token--; token > first && logits[token] < 1e-37f;) token--;
    }
    float norm = logf((float)total), logit = logf(logits[token]);
    c->token[at] = token;
    c->logp[at] = logit - norm;
    c->entropy[at] = norm - mean / (float)total;
    if (c->logp_raw) c->logp_raw[at] = c->temperature * logit - logf((float)plain);
    return 1;
}

/* the steps ----------------------------------------------------------------------------------------------------------- */

typedef struct {
    const Call *call;
    atomic_int open, arrived, turn, failed;
    atomic_long ended;
} Meeting;

typedef struct {
    Meeting *meeting;
    int64_t number, done;
} Share;

static void meet(Meeting *meeting) {
    int threads = (int)meeting->call->threads, turn = atomic_load(&meeting->turn);
    if (threads == 1) return;
    if (atomic_fetch_add(&meeting->arrived, 1) == threads - 1) {
        atomic_store(&meeting->arrived, 0);
        atomic_store(&meeting->turn, turn + 1);
        return;
    }
    for (int spins = 0; atomic_load(&meeting->turn) == turn; spins++)
        if (spins > 2000) sched_yield();
}

/* Take rows [first, first + count) one step further; returns 0 where memory or a number fails. */
static int advanced(const Call *c, int64_t first, int64_t count, int64_t step, float *space, double *mass, float *scores) {
    int64_t hidden = c->hidden, dim = c->dim, joined = (c->heads + 2 * c->kv_heads) * dim, end = c->end + step;
    float *x = space, *y = x + count * hidden, *qkv = y + count * hidden, *read = qkv + count * joined;
    float *gate = read + count * c->heads * dim, *logits = gate + count * 2 * c->inner;
    for (int64_t r = 0; r < count; r++) {
        int64_t row = first + r, token = step ? c->token[row * c->steps + step - 1] : c->pending[row];
        memcpy(x + r * hidden, c->embedding + token * hidden, hidden * sizeof(float));
    }
    for (int64_t index = 0; index < c->layers; index++) {
        const Layer *layer = &c->layer[index];
        normed(x, count, hidden, layer->before_eps, NULL, y);
        product(y, hidden, count, hidden, layer->qkv, layer->qkv_bias, 0, qkv, joined, joined);
        for (int64_t r = 0; r < count; r++)
            turned(c, layer, first + r, c->position[first + r] + step, end, qkv + r * joined);
        for (int64_t r = 0, next; r < count; r = next) {
            const int64_t *member = c->member ? c->member + 2 * (first + r) : NULL;
            for (next = r + 1; member && next < count; next++)
                if (memcmp(member, c->member + 2 * (first + next), 2 * sizeof(int64_t))) break;
            attended(c, index, first + r, next - r, end + 1, qkv + r * joined, read + r * c->heads * dim, scores);
        }
        product(read, c->heads * dim, count, c->heads * dim, layer->out, layer->out_bias, 1, x, hidden, hidden);
        normed(x, count, hidden, layer->between_eps, NULL, y);
        product(y, hidden, count, hidden, layer->gate_up, layer->gate_up_bias, 0, gate, 2 * c->inner, 2 * c->inner);
        for (int64_t r = 0; r < count; r++) {
            float *g = gate + r * 2 * c->inner, *up = g + c->inner;
            int64_t i = 0;
            for (; i + W <= c->inner; i += W)
                store(g + i, load(g + i) / (1.0f + exponential(-load(g + i))) * load(up + i));
            for (; i < c->inner; i++) g[i] = g[i] / (1.0f + expf(-g[i])) * up[i];
        }
        product(gate, 2 * c->inner, count, c->inner, layer->down, layer->down_bias, 1, x, hidden, hidden);
    }
    normed(x, count, hidden, c->norm_eps, c->norm, y);
    if (c->logits) {
        product(y, hidden, count, hidden, c->head, c->head_bias, 0, c->logits + first * c->vocabulary, c->vocabulary,
                c->vocabulary);
        return 1;
    }
    product(y, hidden, count, hidden, c->head, c->head_bias, 0, logits, c->vocabulary, c->vocabulary);
    for (int64_t r = 0; r < count; r++)
        if (!drawn(c, logits + r * c->vocabulary, first + r, step, mass)) return 0;
    return 1;
}

static void *worked(void *given) {
    Share *share = given;
    Meeting *meeting = share->meeting;
    const Call *c = meeting->call;
    while (!atomic_load(&meeting->open)) sched_yield();
    int64_t begin = c->rows * share->number / c->threads, finish = c->rows * (share->number + 1) / c->threads;
    int64_t joined = (c->heads + 2 * c->kv_heads) * c->dim, longest = 0;
    for (int64_t row = begin; c->member && row < finish; row++) {
        int64_t length = c->shared[c->member[2 * row]].lengths[c->member[2 * row + 1]];
        longest = length > longest ? length : longest;
    }
    int64_t most = finish - begin < CHUNK ? finish - begin : CHUNK;
    int64_t a_row = 2 * c->hidden + joined + c->heads * c->dim + 2 * c->inner + (c->logits ? 0 : c->vocabulary);
    int64_t room = (longest + c->end + c->steps - c->low + 2 * W) * most * (c->heads / c->kv_heads);
    float *space = malloc((size_t)(most * a_row) * sizeof(float)), *scores = malloc((size_t)room * sizeof(float));
    double *mass = malloc((size_t)(c->vocabulary / BLOCK + 1) * sizeof(double));
    if (!space || !scores || !mass) atomic_store(&meeting->failed, 2);
    for (int64_t step = 0, over = 0; step < c->steps && !over; step++) {
        for (int64_t first = begin; first < finish && !atomic_load(&meeting->failed); first += CHUNK) {
            int64_t count = finish - first < CHUNK ? finish - first : CHUNK;
            if (!advanced(c, first, count, step, space, mass, scores)) atomic_store(&meeting->failed, 1);
        }
        share->done = step + 1;
        for (int64_t row = begin; c->stop_count && row < finish && !atomic_load(&meeting->failed); row++)
            for (int64_t s = 0; s < c->stop_count && !c->ended[row]; s++)
                if (c->token[row * c->steps + step] == c->stops[s]) c->ended[row] = 1, atomic_fetch_add(&meeting->ended, 1);
        /* Two meetings: nobody adds to the count before all have looked at it. */
        meet(meeting);
        over = atomic_load(&meeting->failed) || (c->stop_count && atomic_load(&meeting->ended) >= c->enough);
        meet(meeting);
    }
    free(space), free(scores), free(mass);
    return NULL;
}

/* Take all rows `steps` steps further, fewer when `enough` of them have ended by a stop token; returns the number of steps,
   -1 where a logit is not finite, -2 where there is no memory. */
int64_t decode(const Call *call) {
    Call own = *call;
    Meeting meeting = {.call = &own};
    Share shares[THREADS];
    pthread_t threads[THREADS];
    int64_t most = own.threads < own.rows ? own.threads : own.rows, started = 1;
    for (int64_t row = 0; own.stop_count && row < own.rows; row++) meeting.ended += own.ended[row];
    for (int64_t i = 0; i < THREADS; i++) shares[i] = (Share){&meeting, i, 0};
    while (started < most && started < THREADS && !pthread_create(&threads[started], NULL, worked, &shares[started])) started++;
    own.threads = started; /* as many as there were to be had; they wait until this is known */
    atomic_store(&meeting.open, 1);
    worked(&shares[0]);
    for (int64_t i = 1; i < started; i++) pthread_join(threads[i], NULL);
    return atomic_load(&meeting.failed) ? -atomic_load(&meeting.failed) : shares[0].done;
}
