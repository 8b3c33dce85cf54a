/* A Llama in plain C, for the tests of the doctor's walk along a text. Usage:
   port MODEL TOKENIZER MISTAKE STEPS TEMPERATURE TOPP SEED TOKEN... ; a text on standard output */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int dim, hidden, layers, heads, kv_heads, vocab, context, hs, kv_dim;
static const char *mistake;
static float epsilon = 1e-5f, theta = 10000.0f;

static int is(const char *name) { return strcmp(mistake, name) == 0; }

static void matvec(float *y, const float *w, const float *x, int rows, int columns) {
    for (int i = 0; i < rows; i++) {
        float sum = 0;
        for (int j = 0; j < columns; j++) sum += w[(size_t)i * columns + j] * x[j];
        y[i] = sum;
    }
}
static void norm(float *y, const float *x, const float *w) {
    float sum = 0;
    for (int i = 0; i < dim; i++) sum += x[i] * x[i];
    float s = 1.0f / sqrtf(sum / dim + epsilon);
    for (int i = 0; i < dim; i++) y[i] = w[i] * (s * x[i]);
}
static void softmax(float *x, int n) {
    float top = x[0], sum = 0;
    for (int i = 1; i < n; i++) if (x[i] > top) top = x[i];
    for (int i = 0; i < n; i++) { x[i] = expf(x[i] - top); sum += x[i]; }
    for (int i = 0; i < n; i++) x[i] /= sum;
}
static void turn(float *x, int n, int pos) {
    for (int h = 0; h < n; h++)
        for (int i = 0; i < hs / 2; i++) {
            float f = 1.0f / powf(theta, (float)(2 * i) / hs), a = pos * f, c = cosf(a), s = sinf(a);
            float *u = x + h * hs + 2 * i, *v = u + 1;
            if (is("halves")) { u = x + h * hs + i; v = u + hs / 2; }
            float p = *u, q = *v;
            *u = p * c - q * s; *v = p * s + q * c;
        }
}
static float to16(float v) { return (float)(_Float16)v; }

typedef struct { float p; int token; } Candidate;
static int by_p(const void *a, const void *b) {
    float x = ((const Candidate *)a)->p, y = ((const Candidate *)b)->p;
    return x > y ? -1 : x < y;
}
static uint64_t state;
static float coin(void) {
    state ^= state >> 12; state ^= state << 25; state ^= state >> 27;
    return ((uint32_t)((state * 0x2545F4914F6CDD1Dull) >> 32) >> 8) / 16777216.0f;
}
static int likeliest(const float *x) {
    int best = 0;
    for (int i = 1; i < vocab; i++) if (x[i] > x[best]) best = i;
    return best;
}
static int draw(float *x, float temperature, float topp) {
    if (temperature == 0) return likeliest(x);
    for (int i = 0; i < vocab; i++) x[i] /= temperature;
    softmax(x, vocab);
    float c = coin();
    if (is("coins")) c = coin();
    if (topp <= 0 || topp >= 1) {
        float sum = 0;
        for (int i = 0; i < vocab; i++) { sum += x[i]; if (c < sum) return i; }
        return vocab - 1;
    }
    static Candidate *all; if (!all) all = malloc(vocab * sizeof *all);
    int n = 0; float cutoff = (1.0f - topp) / (vocab - 1), sum = 0;
    for (int i = 0; i < vocab; i++) if (x[i] >= cutoff) all[n++] = (Candidate){x[i], i};
    if (n == 0) return likeliest(x);
    qsort(all, n, sizeof *all, by_p);
    int last = n - 1;
    for (int i = 0; i < n; i++) { sum += all[i].p; if (sum > topp) { last = i; break; } }
    float r = c * sum, run = 0;
    for (int i = 0; i <= last; i++) { run += all[i].p; if (r < run) return all[i].token; }
    return all[last].token;
}

int main(int argc, char **argv) {
    mistake = argv[3];
    int steps = atoi(argv[4]); float temperature = atof(argv[5]), topp = atof(argv[6]); state = strtoull(argv[7], 0, 10);
    int given = argc - 8;
    FILE *f = fopen(argv[1], "rb"); int32_t head[7];
    if (!f || fread(head, 4, 7, f) != 7) return 2;
    dim = head[0]; hidden = head[1]; layers = head[2]; heads = head[3]; kv_heads = head[4];
    vocab = abs(head[5]); context = head[6]; hs = dim / heads; kv_dim = hs * kv_heads;
    long begin = 28; fseek(f, 0, SEEK_END); long size = ftell(f) - begin; fseek(f, begin, SEEK_SET);
    float *w = malloc(size); if (fread(w, 1, size, f) != (size_t)size) return 2; fclose(f);
    size_t L = layers;
    float *emb = w, *ra = emb + (size_t)vocab * dim, *wq = ra + L * dim, *wk = wq + L * dim * dim,
          *wv = wk + L * kv_dim * dim, *wo = wv + L * kv_dim * dim, *rf = wo + L * dim * dim, *w1 = rf + L * dim,
          *w2 = w1 + L * hidden * dim, *w3 = w2 + L * dim * hidden, *rl = w3 + L * hidden * dim,
          *cls = head[5] > 0 ? emb : rl + dim + (size_t)context * hs;
    if (is("epsilon")) epsilon = 1e-6f;
    if (is("theta100000")) theta = 100000.0f;
    if (is("theta10001")) theta = 10001.0f;
    f = fopen(argv[2], "rb"); int32_t longest; if (!f || fread(&longest, 4, 1, f) != 1) return 2;
    char **pieces = malloc(vocab * sizeof *pieces); int32_t *lengths = malloc(vocab * 4);
    for (int i = 0; i < vocab; i++) {
        float score; if (fread(&score, 4, 1, f) != 1 || fread(lengths + i, 4, 1, f) != 1) return 2;
        pieces[i] = calloc(lengths[i] + 1, 1); if (fread(pieces[i], 1, lengths[i], f) != (size_t)lengths[i]) return 2;
    }
    fclose(f);
    float *x = calloc(dim, 4), *y = calloc(dim, 4), *o = calloc(dim, 4), *q = calloc(dim, 4), *g = calloc(hidden, 4),
          *u = calloc(hidden, 4), *att = calloc(context, 4), *logits = calloc(vocab, 4),
          *K = calloc(L * context * kv_dim, 4), *V = calloc(L * context * kv_dim, 4);
    int token = atoi(argv[8]);
    const char *dump = getenv("LOGITS"); FILE *d = dump ? fopen(dump, "wb") : 0;
    for (int pos = 0; pos < steps && pos < context; pos++) {
        memcpy(x, emb + (size_t)token * dim, dim * 4);
        for (size_t l = 0; l < L; l++) {
            float *keys = K + l * context * kv_dim, *values = V + l * context * kv_dim;
            float *k = keys + (size_t)pos * kv_dim, *v = values + (size_t)pos * kv_dim;
            norm(y, x, ra + l * dim);
            matvec(q, wq + l * dim * dim, y, dim, dim);
            matvec(k, wk + l * kv_dim * dim, y, kv_dim, dim);
            matvec(v, wv + l * kv_dim * dim, y, kv_dim, dim);
            turn(q, heads, pos); turn(k, kv_heads, pos);
            if (is("cache16")) for (int i = 0; i < kv_dim; i++) { k[i] = to16(k[i]); v[i] = to16(v[i]); }
            for (int h = 0; h < heads; h++) {
                int kv = h / (heads / kv_heads);
                for (int t = 0; t <= pos; t++) {
                    float s = 0;
                    for (int i = 0; i < hs; i++) s += q[h * hs + i] * keys[(size_t)t * kv_dim + kv * hs + i];
                    att[t] = is("noscale") ? s : s / sqrtf(hs);
                }
                softmax(att, pos + 1);
                for (int i = 0; i < hs; i++) y[h * hs + i] = 0;
                for (int t = 0; t <= pos; t++)
                    for (int i = 0; i < hs; i++) y[h * hs + i] += att[t] * values[(size_t)t * kv_dim + kv * hs + i];
            }
            matvec(o, wo + l * dim * dim, y, dim, dim);
            for (int i = 0; i < dim; i++) x[i] += o[i];
            norm(y, x, rf + l * dim);
            matvec(g, w1 + l * hidden * dim, y, hidden, dim);
            matvec(u, w3 + l * hidden * dim, y, hidden, dim);
            for (int i = 0; i < hidden; i++) {
                float a = g[i];
                a = is("gelu") ? 0.5f * a * (1 + erff(a / sqrtf(2))) : a / (1 + expf(-a));
                g[i] = a * u[i];
            }
            matvec(o, w2 + l * dim * hidden, g, dim, hidden);
            for (int i = 0; i < dim; i++) x[i] += o[i];
        }
        norm(y, x, rl);
        matvec(logits, cls, y, vocab, dim);
        if (d) fwrite(logits, 4, vocab, d);
        int next = pos + 1 < given ? atoi(argv[8 + pos + 1]) : draw(logits, temperature, topp);
        if (next == 1) break;
        char *piece = pieces[next]; int n = lengths[next]; unsigned byte; char one[2] = {0};
        if (token == 1 && n && piece[0] == ' ') { piece++; n--; }
        if (n == 6 && sscanf(piece, "<0x%02X>", &byte) == 1) { one[0] = (char)byte; piece = one; n = 1; }
        unsigned char c = (unsigned char)piece[0];
        if (!(n == 1 && (c < 9 || (c > 13 && c < 32) || c > 126))) fwrite(piece, 1, n, stdout);
        fprintf(stderr, "%d ", next);
        token = next;
    }
    printf("\n");
    if (d) fclose(d);
    return 0;
}
