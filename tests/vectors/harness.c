// Runs the vectors over llama.c: cc -O2 harness.c -o harness -lm && ./harness FOLDER. One line a file: its name, tests,
// failures, and the largest part of a bound that was used. Exit code 1 if anything fails. Its JSON reader is its own.
#include "llama.c"
#include <stdio.h>

typedef struct Node {          // a value
    char type, *text;          // 's': text; 'n': a number, as text too; 'a', 'o': items; else a word
    char *name;                // of a field
    double number;
    int count;
    struct Node **items;
} Node;

static char *at;

static void blank(void) { while (*at && strchr(" \n\r\t,:", *at)) at++; }

static char *string(void) {    // as UTF-8
    char *start = ++at, *out = start;
    while (*at != '"') {
        if (*at != '\\') { *out++ = *at++; continue; }
        char c = at[1], *escaped = c ? strchr("n\nt\tb\bf\fr\r", c) : 0;
        at += 2;
        if (c != 'u') { *out++ = escaped ? escaped[1] : c; continue; }
        unsigned v, low;
        sscanf(at, "%4x", &v), at += 4;
        if (v >> 10 == 0x36) sscanf(at + 2, "%4x", &low), at += 6, v = 0x10000 + ((v & 0x3ff) << 10) + (low & 0x3ff);
        int n = v < 0x80 ? 0 : v < 0x800 ? 1 : v < 0x10000 ? 2 : 3;
        *out++ = n ? (0xF00 >> (n + 1) & 0xFF) | v >> 6 * n : v;
        while (n--) *out++ = 0x80 | (v >> 6 * n & 0x3F);
    }
    at++;
    *out = 0;
    return start;
}

static Node *value(void) {
    Node *v = calloc(1, sizeof(Node));
    blank();
    if (*at == '"') { v->type = 's', v->text = string(); return v; }
    if (*at == '[' || *at == '{') {
        v->type = *at++ == '[' ? 'a' : 'o';
        for (blank(); *at != ']' && *at != '}'; blank()) {
            char *name = v->type == 'o' ? string() : 0;
            v->items = realloc(v->items, sizeof(Node *) * (v->count + 1));
            Node *item = value();
            item->name = name;
            v->items[v->count++] = item;
        }
        at++;
        return v;
    }
    v->type = strchr("-0123456789", *at) ? 'n' : 'w';
    v->text = at, v->number = strtod(at, 0);
    while (*at && !strchr(" \n\r\t,:]}", *at)) at++;
    return v;
}

static Node *field(Node *v, const char *name) {
    for (int i = 0; v && i < v->count; i++) if (!strcmp(v->items[i]->name, name)) return v->items[i];
    return 0;
}
static int integer(Node *v, const char *name) { return (int)field(v, name)->number; }
static float number(Node *v, const char *name) { Node *f = field(v, name); return f ? strtof(f->text, 0) : 0; }

static int fill(Node *v, float *out) {  // numbers, in rows or not, as float32 -> how many
    if (v->type == 'n') return *out = strtof(v->text, 0), 1;
    int n = 0;
    for (int i = 0; i < v->count; i++) n += fill(v->items[i], out + n);
    return n;
}
static float *floats(Node *v, const char *name, int *n) {
    float *out = calloc(65536, sizeof(float));
    *n = fill(field(v, name), out);
    return out;
}

static double used(const float *y, int n, Node *expected, Node *bound) {  // the largest part of a bound
    double worst = n == expected->count ? 0 : 1e300;
    for (int i = 0; i < n && worst < 1e300; i++) {
        uint32_t bits;
        memcpy(&bits, y + i, 4);  // -ffast-math takes isfinite for true
        if ((bits >> 23 & 255) == 255) return 1e300;
        double off = fabs(y[i] - expected->items[i]->number) / bound->items[i]->number;
        if (off > worst) worst = off;
    }
    return worst;
}

static char *folder;
static char *contents(const char *name) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "rb");
    if (!file) { fprintf(stderr, "harness: %s cannot be read\n", path); exit(2); }
    char *data = calloc(1 << 20, 1);
    if (fread(data, 1, (1 << 20) - 1, file) == 0) exit(2);
    fclose(file);
    return data;
}

static Node *shown;
static double worst_shown;
static void see(int pos, int layer, const char *op, const float *values, int n) {
    for (int i = 0; i < shown->count; i++) {
        Node *o = shown->items[i];
        if (integer(o, "pos") != pos || integer(o, "layer") != layer || strcmp(field(o, "op")->text, op)) continue;
        double part = used(values, n, field(o, "expected"), field(o, "bound"));
        if (part > 1) printf("  %s of layer %d, position %d: %g bounds\n", op, layer, pos, part);
        if (part > worst_shown) worst_shown = part;
    }
}

static double run_model(Node *t) {
    Model m;
    load(&m, contents(field(t, "model")->text));
    shown = field(t, "operations"), worst_shown = 0;
    Node *tokens = field(t, "tokens");
    float *logits = calloc(m.vocab, sizeof(float));
    for (int pos = 0; pos < tokens->count; pos++) {
        forward(logits, &m, (int)tokens->items[pos]->number, pos, see);
        double part = used(logits, m.vocab, field(t, "expected")->items[pos], field(t, "bound")->items[pos]);
        if (part > worst_shown) worst_shown = part;
    }
    return worst_shown;
}

static double run_operation(const char *name, Node *t) {
    int n, m, heads = field(t, "n_heads") ? integer(t, "n_heads") : 1;
    int kv_heads = heads > 1 || field(t, "n_kv_heads") ? integer(t, "n_kv_heads") : 1;
    float *y = calloc(65536, sizeof(float)), *x;
    if (!strcmp(name, "embedding")) {
        float *table = floats(t, "table", &n);
        n /= field(t, "table")->count, y = table + integer(t, "token") * n;
    } else if (!strcmp(name, "rmsnorm")) {
        x = floats(t, "x", &n), rmsnorm(y, x, floats(t, "weight", &m), n);
    } else if (!strcmp(name, "matvec")) {
        x = floats(t, "x", &m), n = field(t, "w")->count;
        float *w = floats(t, "w", &(int){0});
        matvec(y, w, x, n, m);
    } else if (!strcmp(name, "rope") || !strcmp(name, "rope_scaled")) {
        Node *s = field(t, "scaling");
        Scaling scaling = {number(s, "factor"), number(s, "low_freq_factor"), number(s, "high_freq_factor"),
                           number(s, "original_max_position_embeddings")};
        y = floats(t, "x", &n);
        rope(y, n, integer(t, "pos"), integer(t, "head_size"), number(t, "theta"), scaling);
    } else if (!strcmp(name, "attention_weights")) {
        x = floats(t, "q", &m), n = field(t, "keys")->count;
        attention_weights(y, x, floats(t, "keys", &(int){0}), n, heads, kv_heads, m / heads);
        n *= heads;
    } else if (!strcmp(name, "attention_mix")) {
        x = floats(t, "values", &m), m /= field(t, "values")->count;
        float *weights = floats(t, "weights", &n);
        attention_mix(y, weights, x, n / heads, heads, kv_heads, m / kv_heads);
        n = m / kv_heads * heads;
    } else if (!strcmp(name, "swiglu")) {
        x = floats(t, "gate", &n), swiglu(y, x, floats(t, "up", &m), n);
    } else {
        x = floats(t, "x", &n), residual(y, x, floats(t, "change", &m), n);
    }
    return used(y, n, field(t, "expected"), field(t, "bound"));
}

static int same_sampler(Node *t) {
    int n;
    float *logits = floats(t, "logits", &n);
    return sample(logits, n, number(t, "temperature"), number(t, "p"), number(t, "coin")) == integer(t, "expected");
}

static int same_xorshift(Node *t) {
    uint64_t state = strtoull(field(t, "seed")->text, 0, 10);
    Node *coins = field(t, "coins");
    for (int i = 0; i < coins->count; i++) if (xorshift(&state) != strtof(coins->items[i]->text, 0)) return 0;
    return state == strtoull(field(t, "state")->text, 0, 10);
}

static int same_tokenizer(Node *t, Node *group) {
    Tokenizer tokenizer;
    load_tokenizer(&tokenizer, integer(group, "vocab"), contents(field(group, "tokenizer")->text));
    int tokens[1024], n = encode(&tokenizer, field(t, "text")->text, tokens);
    Node *expected = field(t, "tokens");
    char hex[4096] = "", *out = hex;
    for (int i = 0; i < n; i++) {
        uint8_t bytes[64];
        if (n != expected->count || tokens[i] != (int)expected->items[i]->number) return 0;
        int length = i ? decode(&tokenizer, tokens[i - 1], tokens[i], bytes) : 0;
        for (int j = 0; j < length; j++) out += sprintf(out, "%02x", bytes[j]);
    }
    return n == expected->count && !strcmp(hex, field(t, "decoded_hex")->text);
}

static double run(const char *name, Node *t, Node *group) {
    if (!strcmp(name, "model")) return run_model(t);
    if (!strcmp(name, "sampler")) return same_sampler(t) ? 0 : 1e300;
    if (!strcmp(name, "xorshift")) return same_xorshift(t) ? 0 : 1e300;
    if (!strcmp(name, "tokenizer")) return same_tokenizer(t, group) ? 0 : 1e300;
    return run_operation(name, t);
}

int main(int argc, char **argv) {
    const char *names[] = {"embedding", "rmsnorm", "matvec", "rope", "rope_scaled", "attention_weights",
                           "attention_mix", "swiglu", "residual", "model", "sampler", "xorshift", "tokenizer"};
    int failed = 0;
    folder = argc > 1 ? argv[1] : ".";
    for (int f = 0; f < 13; f++) {
        char file[64];
        snprintf(file, sizeof file, "%s.json", names[f]);
        at = contents(file);
        Node *groups = field(value(), "testGroups");
        int tests = 0, failures = 0;
        double worst = 0;
        for (int g = 0; g < groups->count; g++) for (int i = 0; i < field(groups->items[g], "tests")->count; i++) {
            Node *t = field(groups->items[g], "tests")->items[i];
            double part = run(names[f], t, groups->items[g]);
            int acceptable = !strcmp(field(t, "result")->text, "acceptable");
            tests++;
            if (part > 1) printf("  %s %d, %s: %g bounds (%s)\n", names[f], integer(t, "tcId"),
                                 field(t, "comment")->text, part, field(t, "result")->text);
            if (!acceptable) failures += part > 1, worst = part > worst ? part : worst;
        }
        printf("%s %d %d %g\n", names[f], tests, failures, worst);
        failed |= failures > 0;
    }
    return failed;
}
