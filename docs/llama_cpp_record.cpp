#include "ggml-backend.h"
#include "llama.h"
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

// what llama.cpp calls the operations
static const std::map<std::string, const char *> NAMES = {
    {"embd", "embedding"}, {"inp_embd", "embedding"}, {"attn_norm", "attention_norm"}, {"Qcur", "q"}, {"Kcur", "k"},
    {"Vcur", "v"}, {"kq_soft_max", "weights"}, {"kqv_out", "attention"}, {"attn_out", "attention_out"},
    {"ffn_inp", "attention_residual"}, {"ffn_norm", "ffn_norm"}, {"ffn_gate", "gate"}, {"ffn_up", "up"},
    {"ffn_swiglu", "swiglu"}, {"ffn_out", "ffn_out"}, {"l_out", "ffn_residual"}, {"result_norm", "final_norm"},
    {"result_output", "logits"}};

struct Step { int pos; std::map<std::string, std::vector<float>> seen; };  // by "LAYER OP"

// called twice for each node of the graph: is it wanted? and when it has been computed
static bool see(ggml_tensor *t, bool ask, void *data) {
    auto *step = (Step *)data;
    std::string full = t->name, layer = "-1";  // as "Qcur-3" in layer 3
    size_t dash = full.rfind('-');
    if (dash != std::string::npos) layer = full.substr(dash + 1);
    auto name = NAMES.find(full.substr(0, dash));
    bool is_view = layer.find(' ') != std::string::npos;  // as "Qcur-3 (reshaped)"
    if (name == NAMES.end() || is_view) return !ask;
    if (ask) return true;
    std::string op = name->second;
    std::vector<float> x(ggml_nelements(t));
    ggml_backend_tensor_get(t, x.data(), 0, x.size() * sizeof(float));
    if (op == "weights") {  // rows of a whole block of the cache: only positions so far count
        std::vector<float> rows;
        for (size_t at = 0; at < x.size(); at += t->ne[0])
            rows.insert(rows.end(), x.begin() + at, x.begin() + at + step->pos + 1);
        x = rows;
    }
    step->seen[layer + " " + op] = x;  // the last one counts: q and k after RoPE
    return true;
}

int main(int argc, char **argv) {  // record MODEL.gguf FILE TOKEN...
    Step step;
    llama_backend_init();
    llama_model *model = llama_model_load_from_file(argv[1], llama_model_default_params());
    llama_context_params params = llama_context_default_params();
    params.type_k = params.type_v = GGML_TYPE_F32;  // the cache is float16 unless it is asked for
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;  // shows no weights
    params.cb_eval = see;
    params.cb_eval_user_data = &step;
    llama_context *context = llama_init_from_model(model, params);
    FILE *f = fopen(argv[2], "wb");
    for (step.pos = 0; step.pos < argc - 3; step.pos++) {
        llama_token token = atoi(argv[3 + step.pos]);
        llama_decode(context, llama_batch_get_one(&token, 1));  // one at a time
        for (auto &[place, x] : step.seen) {
            fprintf(f, "%d %s %zu\n", step.pos, place.c_str(), x.size());
            fwrite(x.data(), sizeof(float), x.size(), f);
        }
        step.seen.clear();
    }
    return fclose(f);
}
