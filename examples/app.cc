// app.cc: a distilled model in a C++ application. Handles own their objects, errors become
// exceptions, and text arrives piece by piece.
//
//   c++ -std=c++11 -O3 -I. examples/app.cc -o app
//   ./app examples/tiny "Once upon a time"
#define MOHAWK_IMPLEMENTATION // in one file of the program
#include "mohawk.h"
#include <cstdio>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>

namespace mohawk {

template <class T, void (*Destroy)(T *)>
struct Deleter {
  void operator()(T *x) const { Destroy(x); }
};
using Context = std::unique_ptr<mhk_context, Deleter<mhk_context, mhk_destroy>>;
using Model = std::unique_ptr<mhk_model, Deleter<mhk_model, mhk_model_destroy>>;
using Session = std::unique_ptr<mhk_session, Deleter<mhk_session, mhk_session_destroy>>;

// A model that continues texts. One thread at a time; make one for each thread.
class Writer {
 public:
  explicit Writer(const std::string &path, int threads = 1) {
    mhk_context_desc desc = {};
    desc.threads = threads;
    context_.reset(mhk_create(&desc));
    model_.reset(mhk_load(context_.get(), path.c_str()));
    session_.reset(mhk_session_create(model_.get(), nullptr));
    check();
  }

  // Calls piece() with whole UTF-8 characters until it returns false, the model ends its text, or
  // the given number of tokens is written.
  void write(const std::string &prompt, int tokens, const std::function<bool(const char *)> &piece) {
    mhk_sampling how = {};
    how.temperature = 0.8;
    how.top_p = 0.95;
    how.seed = 1;
    mhk_session_reset(session_.get(), MHK_ALL);
    mhk_feed_text(session_.get(), prompt.c_str());
    while (tokens-- > 0 && mhk_sample(session_.get(), &how) >= 0 && piece(mhk_text_out(session_.get()))) {
    }
    check();
  }

 private:
  // After an error every call does nothing, so one check at the end of a chain is enough.
  void check() {
    if (!mhk_failed(context_.get())) return;
    const std::string message = mhk_message(context_.get());
    mhk_clear_error(context_.get());
    throw std::runtime_error(message);
  }

  Context context_; // declared first: destroyed last
  Model model_;
  Session session_;
};

} // namespace mohawk

int main(int argc, char **argv) {
  try {
    const std::string prompt = argc > 2 ? argv[2] : "Once upon a time";
    mohawk::Writer writer(argc > 1 ? argv[1] : "examples/tiny");
    std::string text = prompt;
    writer.write(prompt, 60, [&](const char *piece) {
      text += piece;
      return text.find("The End") == std::string::npos;
    });
    std::printf("%s\n", text.c_str());
    return 0;
  } catch (const std::exception &e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
