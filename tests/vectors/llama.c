// A Llama in float32, as a port to C may be: checkpoints and tokenizers of llama2.c. harness.c tests it.
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct { float factor, low, high, original; } Scaling;  // factor 0: none; low 0: linear

float dot(const float *a, const float *b, int n) {
    float sum = 0;
    for (int i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

void matvec(float *y, const float *w, const float *x, int rows, int n) {
    for (int i = 0; i < rows; i++) y[i] = dot(w + (size_t)i * n, x, n);
}

void residual(float *y, const float *x, const float *change, int n) {
    for (int i = 0; i < n; i++) y[i] = x[i] + change[i];
}

void rmsnorm(float *y, const float *x, const float *weight, int n) {
    float s = 1 / sqrtf(dot(x, x, n) / n + 1e-5f);
    for (int i = 0; i < n; i++) y[i] = weight[i] * (s * x[i]);
}

void softmax(float *x, int n) {
    float largest = x[0], total = 0;
    for (int i = 1; i < n; i++) if (x[i] > largest) largest = x[i];
    for (int i = 0; i < n; i++) total += x[i] = expf(x[i] - largest);
    for (int i = 0; i < n; i++) x[i] /= total;
}

float frequency(int i, int hs, float theta, Scaling s) {
    float own = 1 / powf(theta, 2 * i / (float)hs), slow = own / s.factor;
    if (s.factor == 0) return own;
    float turns = s.original * own / (2 * (float)M_PI);  // in the original context
    if (s.low == 0 || turns < s.low) return slow;
    if (turns > s.high) return own;
    float part = (turns - s.low) / (s.high - s.low);
    return (1 - part) * slow + part * own;
}

void rope(float *x, int n, int pos, int hs, float theta, Scaling scaling) {
    for (int i = 0; i < n; i += 2) {
        float angle = pos * frequency(i % hs / 2, hs, theta, scaling);
        float c = cosf(angle), s = sinf(angle), a = x[i], b = x[i + 1];
        x[i] = a * c - b * s;
        x[i + 1] = a * s + b * c;
    }
}

// keys: n rows of kv numbers; y: heads * n
void attention_weights(float *y, const float *q, const float *keys, int n, int heads, int kv_heads, int hs) {
    for (int h = 0; h < heads; h++, y += n) {
        const float *key = keys + h / (heads / kv_heads) * hs;
        for (int t = 0; t < n; t++) y[t] = dot(q + h * hs, key + t * kv_heads * hs, hs) / sqrtf(hs);
        softmax(y, n);
    }
}

void attention_mix(float *y, const float *weights, const float *values, int n, int heads, int kv_heads, int hs) {
    memset(y, 0, sizeof(float) * heads * hs);
    for (int h = 0; h < heads; h++)
        for (int t = 0; t < n; t++)
            for (int j = 0; j < hs; j++)
                y[h * hs + j] += weights[h * n + t] * values[(t * kv_heads + h / (heads / kv_heads)) * hs + j];
}

void swiglu(float *y, const float *gate, const float *up, int n) {
    for (int i = 0; i < n; i++) y[i] = gate[i] / (1 + expf(-gate[i])) * up[i];
}

typedef struct {
    int dim, hidden, layers, heads, kv_heads, vocab, context;
    float *embedding, *rms_att, *wq, *wk, *wv, *wo, *rms_ffn, *w1, *w2, *w3, *rms_final, *classifier, *keys, *values;
} Model;

typedef void (*See)(int pos, int layer, const char *op, const float *values, int n);

void load(Model *m, char *data) {  // a checkpoint, version 0
    memcpy(m, data, 28);
    int shared = m->vocab > 0;
    m->vocab = abs(m->vocab);
    int dim = m->dim, kv = dim / m->heads * m->kv_heads, L = m->layers;
    float *at = (float *)(data + 28), **parts[] = {&m->embedding, &m->rms_att, &m->wq, &m->wk, &m->wv, &m->wo,
                                                   &m->rms_ffn, &m->w1, &m->w2, &m->w3, &m->rms_final};
    int sizes[] = {m->vocab * dim, L * dim, L * dim * dim, L * kv * dim, L * kv * dim, L * dim * dim, L * dim,
                   L * m->hidden * dim, L * m->hidden * dim, L * m->hidden * dim, dim};
    for (int i = 0; i < 11; i++) *parts[i] = at, at += sizes[i];
    m->classifier = shared ? m->embedding : at + m->context * (dim / m->heads);  // after the tables of RoPE
    m->keys = calloc((size_t)L * m->context * kv, sizeof(float));
    m->values = calloc((size_t)L * m->context * kv, sizeof(float));
}

void forward(float *logits, Model *m, int token, int pos, See see) {
    int dim = m->dim, hidden = m->hidden, hs = dim / m->heads, kv = m->kv_heads * hs, n = pos + 1;
    float *buffer = calloc(5 * dim + 3 * hidden + (size_t)m->heads * n, sizeof(float));
    float *x = buffer, *normed = x + dim, *q = normed + dim, *mix = q + dim, *out = mix + dim, *gate = out + dim;
    float *up = gate + hidden, *mixed = up + hidden, *weights = mixed + hidden;
    Scaling none = {0};
    memcpy(x, m->embedding + token * dim, sizeof(float) * dim);
    see(pos, -1, "embedding", x, dim);
    for (int l = 0; l < m->layers; l++) {
        float *keys = m->keys + (size_t)l * m->context * kv, *values = m->values + (size_t)l * m->context * kv;
        float *k = keys + pos * kv, *v = values + pos * kv;
        rmsnorm(normed, x, m->rms_att + l * dim, dim), see(pos, l, "attention_norm", normed, dim);
        matvec(q, m->wq + l * dim * dim, normed, dim, dim);
        matvec(k, m->wk + l * kv * dim, normed, kv, dim);
        matvec(v, m->wv + l * kv * dim, normed, kv, dim), see(pos, l, "v", v, kv);
        rope(q, dim, pos, hs, 10000, none), see(pos, l, "q", q, dim);
        rope(k, kv, pos, hs, 10000, none), see(pos, l, "k", k, kv);
        attention_weights(weights, q, keys, n, m->heads, m->kv_heads, hs);
        see(pos, l, "weights", weights, m->heads * n);
        attention_mix(mix, weights, values, n, m->heads, m->kv_heads, hs), see(pos, l, "attention", mix, dim);
        matvec(out, m->wo + l * dim * dim, mix, dim, dim), see(pos, l, "attention_out", out, dim);
        residual(x, x, out, dim), see(pos, l, "attention_residual", x, dim);
        rmsnorm(normed, x, m->rms_ffn + l * dim, dim), see(pos, l, "ffn_norm", normed, dim);
        matvec(gate, m->w1 + l * hidden * dim, normed, hidden, dim), see(pos, l, "gate", gate, hidden);
        matvec(up, m->w3 + l * hidden * dim, normed, hidden, dim), see(pos, l, "up", up, hidden);
        swiglu(mixed, gate, up, hidden), see(pos, l, "swiglu", mixed, hidden);
        matvec(out, m->w2 + l * hidden * dim, mixed, dim, hidden), see(pos, l, "ffn_out", out, dim);
        residual(x, x, out, dim), see(pos, l, "ffn_residual", x, dim);
    }
    rmsnorm(normed, x, m->rms_final, dim), see(pos, -1, "final_norm", normed, dim);
    matvec(logits, m->classifier, normed, m->vocab, dim);
    free(buffer);
}

static float *order_by;
static int by_probability(const void *a, const void *b) {
    int s = *(int *)a, t = *(int *)b;
    return order_by[s] != order_by[t] ? (order_by[s] < order_by[t] ? 1 : -1) : s - t;  // equal ones by their numbers
}

int sample(float *logits, int n, float temperature, float p, float coin) {  // logits become probabilities
    int best = 0, top[n], count = 0, whole = p <= 0 || p >= 1;
    for (int i = 1; i < n; i++) if (logits[i] > logits[best]) best = i;
    if (temperature == 0) return best;
    for (int i = 0; i < n; i++) logits[i] /= temperature;
    softmax(logits, n);
    float cutoff = (1 - p) / (n > 1 ? n - 1 : 1), sum = 0, running = 0;
    for (int i = 0; i < n; i++) if (whole || logits[i] >= cutoff) top[count++] = i;
    order_by = logits;
    if (!whole) {
        qsort(top, count, sizeof(int), by_probability);
        int taken = 0;
        while (taken < count && sum <= p) sum += logits[top[taken++]];
        coin *= sum, count = taken;
    }
    for (int i = 0; i < count; i++) if (coin < (running += logits[top[i]])) return top[i];
    return top[count - 1];
}

float xorshift(uint64_t *state) {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return (*state * 0x2545F4914F6CDD1Dull >> 40) / 16777216.0f;
}

typedef struct { int vocab; char **pieces; float *scores; } Tokenizer;

void load_tokenizer(Tokenizer *t, int vocab, const char *data) {
    *t = (Tokenizer){vocab, calloc(vocab, sizeof(char *)), calloc(vocab, sizeof(float))};
    data += 4;
    for (int i = 0, length; i < vocab; i++, data += 8 + length) {
        memcpy(&t->scores[i], data, 4), memcpy(&length, data + 4, 4);
        t->pieces[i] = calloc(length + 1, 1);
        memcpy(t->pieces[i], data + 8, length);
    }
}

int find(Tokenizer *t, const char *a, const char *b) {  // the token that a followed by b is, or -1
    size_t n = strlen(a);
    for (int i = 0; i < t->vocab; i++)
        if (!strncmp(t->pieces[i], a, n) && !strcmp(t->pieces[i] + n, b)) return i;
    return -1;
}

int encode(Tokenizer *t, const char *text, int *tokens) {  // -> how many there are
    int n = 0;
    tokens[n++] = 1;
    if (*text) tokens[n++] = find(t, " ", "");
    while (*text) {
        char character[5] = {*text++};
        int length = 1;
        while ((*text & 0xC0) == 0x80) character[length++] = *text++;
        int known = find(t, character, "");
        for (int i = 0; i < (known < 0 ? length : 1); i++) tokens[n++] = known < 0 ? (uint8_t)character[i] + 3 : known;
    }
    for (;;) {
        int at = 0, merged = 0;
        float best = -1e10f;
        for (int i = 1; i + 1 < n; i++) {
            int pair = find(t, t->pieces[tokens[i]], t->pieces[tokens[i + 1]]);
            if (pair >= 0 && t->scores[pair] > best) best = t->scores[pair], at = i, merged = pair;
        }
        if (!at) return n;
        tokens[at] = merged;
        memmove(tokens + at + 1, tokens + at + 2, sizeof(int) * (--n - at - 1));
    }
}

int decode(Tokenizer *t, int previous, int token, uint8_t *out) {  // -> how many bytes
    const char *piece = t->pieces[token];
    if (previous == 1 && *piece == ' ') piece++;
    if (!strncmp(piece, "<0x", 3) && strlen(piece) == 6) return out[0] = strtol(piece + 3, 0, 16), 1;
    memcpy(out, piece, strlen(piece));
    return strlen(piece);
}
