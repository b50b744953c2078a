// One question about one picture, answered from a bundle by ONNX Runtime: docs/bundle.md in C++.
//
//   answer BUNDLE PICTURE.ppm PROMPT [--ids 2,277,...] [--ratio R]
//
// For float32 bundles with a decoder-only language model, greedily. The answer is on standard output; kept query tokens
// and token ids are on standard error. ORT_LIBRARY names ONNX Runtime's library where the system does not find it.
#define ORT_API_MANUAL_INIT
#include <dlfcn.h>
#include <onnxruntime_cxx_api.h>

#include <cmath>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>

#include "json.h"

using Shape = std::vector<int64_t>;

[[noreturn]] static void fail(const std::string& message) { throw std::runtime_error(message); }

static std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) fail(path + ": can't be read");
  return {std::istreambuf_iterator<char>(file), {}};
}

static void load_onnx_runtime() {
  const char* named = std::getenv("ORT_LIBRARY");
  const std::string path = named ? named : "libonnxruntime.so.1";
  void* library = dlopen(path.c_str(), RTLD_NOW);
  if (!library) fail(std::string(dlerror()) + "; set ORT_LIBRARY to ONNX Runtime's shared library");
  auto base = reinterpret_cast<const OrtApiBase* (*)()>(dlsym(library, "OrtGetApiBase"));
  const OrtApi* api = base ? base()->GetApi(ORT_API_VERSION) : nullptr;
  if (!api) fail(path + ": it has no API " + std::to_string(ORT_API_VERSION) + "; give a newer ONNX Runtime");
  Ort::InitApi(api);
}

// Memory of one tensor, and the value that a graph is bound to.
struct Tensor {
  Shape shape;
  std::vector<float> floats;
  std::vector<int64_t> integers;
  Ort::Value value{nullptr};

  static std::shared_ptr<Tensor> of(Shape shape, std::vector<float> content) {
    auto made = std::make_shared<Tensor>();
    made->shape = std::move(shape), made->floats = std::move(content);
    made->value = bind(made->floats, made->shape);
    return made;
  }
  static std::shared_ptr<Tensor> of(Shape shape, std::vector<int64_t> content) {
    auto made = std::make_shared<Tensor>();
    made->shape = std::move(shape), made->integers = std::move(content);
    made->value = bind(made->integers, made->shape);
    return made;
  }
  template <typename T>
  static Ort::Value bind(std::vector<T>& memory, const Shape& shape) {
    size_t count = memory.size();
    memory.reserve(1);  // an address even where there are no tokens
    auto where = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    return Ort::Value::CreateTensor<T>(where, memory.data(), count, shape.data(), shape.size());
  }
};
using Values = std::map<std::string, std::shared_ptr<Tensor>>;

struct Graph {
  Ort::Session session;
  std::map<std::string, Shape> inputs;  // -1: a free dimension
  std::vector<std::string> outputs;

  Graph(Ort::Env& env, const std::string& folder, const Json& spec) : session(nullptr) {
    const std::string path = folder + "/" + spec["file"]["path"].text;
    if (read_file(path).size() != static_cast<size_t>(spec["file"]["size"].number)) fail(path + ": it was altered");
    Ort::SessionOptions options;
    // It changes what quantised graphs compute.
    options.AddConfigEntry("optimization.disable_specified_optimizers", "ReluQuantRewrite");
    session = Ort::Session(env, path.c_str(), options);
    for (const Json& tensor : spec["inputs"].items) {
      if (tensor["dtype"].text != "float32" && tensor["dtype"].text != "int64")
        fail(path + ": " + tensor["name"].text + " is " + tensor["dtype"].text + ", and this example has float32 alone");
      Shape& shape = inputs[tensor["name"].text];
      for (const Json& extent : tensor["shape"].items)
        shape.push_back(extent.kind == Json::Number ? static_cast<int64_t>(extent.number) : -1);
    }
    for (const Json& tensor : spec["outputs"].items) outputs.push_back(tensor["name"].text);
  }

  // Runs with whatever of `values` the graph takes. Outputs named in `in_place` are written into those tensors, all
  // others are new ones.
  Values run(const Values& values, const Values& in_place = {}) {
    Ort::IoBinding binding(session);
    auto host = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    for (const auto& [name, shape] : inputs) {
      auto found = values.find(name);
      if (found == values.end()) fail("this example does not know the input " + name);
      binding.BindInput(name.c_str(), found->second->value);
    }
    for (const std::string& name : outputs) {
      auto found = in_place.find(name);
      if (found == in_place.end())
        binding.BindOutput(name.c_str(), host);
      else
        binding.BindOutput(name.c_str(), found->second->value);
    }
    session.Run(Ort::RunOptions{nullptr}, binding);
    Values results = in_place;
    std::vector<Ort::Value> found = binding.GetOutputValues();
    for (size_t i = 0; i < outputs.size(); ++i) {
      if (in_place.count(outputs[i])) continue;
      auto info = found[i].GetTensorTypeAndShapeInfo();
      size_t count = info.GetElementCount();
      if (info.GetElementType() == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64) {
        const int64_t* data = found[i].GetTensorData<int64_t>();
        results[outputs[i]] = Tensor::of(info.GetShape(), std::vector<int64_t>(data, data + count));
      } else if (info.GetElementType() == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) {
        const float* data = found[i].GetTensorData<float>();
        results[outputs[i]] = Tensor::of(info.GetShape(), std::vector<float>(data, data + count));
      }
    }
    return results;
  }
};

// pixel_values float32 [1, 3, height, width] of a binary PPM that has the bundle's size: nothing is resized here.
static std::shared_ptr<Tensor> read_pixels(const std::string& path, const Json& image) {
  std::ifstream file(path, std::ios::binary);
  std::string magic;
  int64_t width = 0, height = 0, top = 0;
  if (!(file >> magic >> width >> height >> top) || magic != "P6" || top != 255 || file.get() == EOF)
    fail(path + ": not a binary PPM (P6) with 8 bits a channel");
  if (width != image["width"].number || height != image["height"].number)
    fail(path + ": resize it to " + std::to_string(static_cast<int>(image["width"].number)) + " x " +
         std::to_string(static_cast<int>(image["height"].number)) + " first, as docs/bundle.md says");
  std::vector<unsigned char> bytes(3 * width * height);
  if (!file.read(reinterpret_cast<char*>(bytes.data()), bytes.size())) fail(path + ": it is cut off");
  std::vector<float> pixels(bytes.size());
  for (int channel = 0; channel < 3; ++channel) {
    float scale = image["do_rescale"].number ? image["rescale_factor"].number : 1, shift = 0;
    if (image["do_normalize"].number) {
      float mean = image["image_mean"].items[channel].number, deviation = image["image_std"].items[channel].number;
      scale /= deviation, shift = -mean / deviation;
    }
    for (int64_t i = 0; i < width * height; ++i)
      pixels[channel * width * height + i] = bytes[3 * i + channel] * scale + shift;
  }
  return Tensor::of({1, 3, height, width}, std::move(pixels));
}

// A byte-level vocabulary. A prompt is looked up word by word, which is right where every word is one token; merging
// pieces is left to a tokenizer's library.
class Words {
 public:
  explicit Words(const Json& tokenizer) : tokenizer_(tokenizer) {
    for (const auto& [piece, id] : tokenizer["model"]["vocab"].fields) names_[static_cast<int64_t>(id.number)] = piece;
    for (const Json& token : tokenizer["added_tokens"].items)
      if (token["special"].number) names_.erase(static_cast<int64_t>(token["id"].number));
    for (int byte = 0, others = 0; byte < 256; ++byte) {
      bool shown = (byte > 0x20 && byte < 0x7F) || (byte > 0xA0 && byte < 0x100 && byte != 0xAD);
      std::string name;
      JsonReader::append_utf8(name, shown ? byte : 0x100 + others++);
      bytes_[name] = static_cast<char>(byte);
      name_of_.push_back(name);
    }
  }

  std::vector<int64_t> encode(const std::string& text) const {
    std::vector<int64_t> ids;
    for (const Json& part : tokenizer_["post_processor"]["single"].items) {
      if (const Json& special = part["SpecialToken"]) {
        const Json& known = tokenizer_["post_processor"]["special_tokens"][special["id"].text];
        for (const Json& id : known["ids"].items) ids.push_back(static_cast<int64_t>(id.number));
        continue;
      }
      for (size_t at = 0; at < text.size();) {
        size_t begin = at;
        if (text[at] == ' ') ++at;
        for (size_t first = at; at < text.size() && kind(text[at]) == kind(text[first]);) ++at;
        std::string word;
        for (size_t i = begin; i < at; ++i) word += name_of_[static_cast<unsigned char>(text[i])];
        const Json& id = tokenizer_["model"]["vocab"][word];
        if (!id || tokenizer_["pre_tokenizer"]["type"].text != "ByteLevel")
          fail("'" + text.substr(begin, at - begin) + "' is no token by itself; give the prompt's --ids");
        ids.push_back(static_cast<int64_t>(id.number));
      }
    }
    return ids;
  }

  static int kind(unsigned char c) { return std::isalpha(c) ? 1 : std::isdigit(c) ? 2 : c == ' ' ? 3 : 4; }

  std::string decode(const std::vector<int64_t>& ids) const {
    std::string text;
    for (int64_t id : ids) {
      auto name = names_.find(id);
      if (name == names_.end()) continue;  // a special token
      for (size_t at = 0, size; at < name->second.size(); at += size) {
        unsigned char first = name->second[at];
        size = first < 0x80 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
        text += bytes_.at(name->second.substr(at, size));
      }
    }
    size_t begin = text.find_first_not_of(" \n\t"), end = text.find_last_not_of(" \n\t");
    return begin == std::string::npos ? "" : text.substr(begin, end - begin + 1);
  }

 private:
  const Json& tokenizer_;
  std::map<int64_t, std::string> names_;
  std::map<std::string, char> bytes_;
  std::vector<std::string> name_of_;
};

static void show(const char* what, const std::vector<int64_t>& numbers) {
  std::cerr << what;
  for (int64_t number : numbers) std::cerr << ' ' << number;
  std::cerr << '\n';
}

static void answer(const std::string& folder, const std::string& picture, std::string prompt, const char* given_ids,
                   const char* given_ratio) {
  load_onnx_runtime();
  const Json manifest = JsonReader::parse(read_file(folder + "/catp.json"));
  const Json &text = manifest["text"], &vote = manifest["pruning"], &graphs = manifest["graphs"];
  if (manifest["schema_version"].number != 1) fail("catp.json: its schema version is not 1");
  if (manifest["model"]["language"].text != "decoder-only" || !vote || graphs["language_model_decode"])
    fail("this example runs bundles of a decoder-only language model, in one graph");
  if (manifest["generation"]["do_sample"].number || manifest["generation"]["num_beams"].number != 1)
    std::cerr << "note: the bundle's default is not greedy, and this is\n";

  const Json tokenizer = JsonReader::parse(read_file(folder + "/tokenizer.json"));
  const Words words(tokenizer);
  std::vector<int64_t> ids;
  if (given_ids) {
    for (const Json& id : JsonReader::parse("[" + std::string(given_ids) + "]").items) ids.push_back(id.number);
  } else {
    std::string templated = text["prompt_template"].text;
    ids = words.encode(templated.replace(templated.find("{prompt}"), 8, prompt));
  }
  if (ids.empty()) fail("the prompt has no tokens");

  Ort::Env env(ORT_LOGGING_LEVEL_ERROR, "catp");
  Graph vision(env, folder, graphs["vision_encoder"]), voting(env, folder, graphs["qformer_voting"]);
  Graph language(env, folder, graphs["language_model"]);

  // The image side: one picture, k of its N query tokens.
  const int64_t queries = vote["num_query_tokens"].number;
  const double ratio = given_ratio ? std::atof(given_ratio) : vote["ratio"].number;
  const int64_t kept = std::max<int64_t>(1, std::floor((1 - ratio) * queries + 0.5));
  Values seen{{"pixel_values", read_pixels(picture, manifest["image"])}};
  std::vector<int64_t> schedule;
  for (const Json& count : manifest["encoder_pruning"]["kept_tokens"].items) schedule.push_back(count.number);
  const int64_t layers = schedule.size();
  if (layers) seen["kept_tokens"] = Tensor::of({layers}, std::move(schedule));
  Values encoded = vision.run(seen);
  encoded["num_kept"] = Tensor::of({1}, std::vector<int64_t>{kept});
  Values voted = voting.run(encoded);
  show("kept:", voted["kept_indices"]->integers);

  // The language model: a cache of zeros, which every call reads and writes in place.
  const bool original = vote["positions"].text == "original";
  std::vector<int64_t> where = voted["kept_indices"]->integers;
  for (int64_t i = 0; i < kept && !original; ++i) where[i] = i;
  const int64_t start = original ? queries : kept, length = ids.size();
  const int64_t room = text["max_positions"].number - start - length;
  if (room < 0) fail("the prompt is too long for this model");
  const int64_t most = std::min<int64_t>(text["max_new_tokens"].number, room + 1);
  Values inputs, cache;
  for (const auto& [name, shape] : language.inputs)
    if (name.rfind("past_key_values.", 0) == 0) {
      Shape whole{1, shape[1], kept + length + most - 1, shape[3]};
      inputs[name] = Tensor::of(whole, std::vector<float>(whole[1] * whole[2] * whole[3]));
      cache["present." + name.substr(16)] = inputs[name];
    }
  inputs["input_ids"] = Tensor::of({1, length}, ids);
  inputs["prefix_embeds"] = voted["kept_embeds"];
  inputs["prefix_positions"] = Tensor::of({1, kept}, where);
  inputs["position_start"] = Tensor::of({1}, std::vector<int64_t>{start});
  inputs["write_indices"] = Tensor::of({1}, std::vector<int64_t>{0});
  inputs["last_indices"] = Tensor::of({1}, std::vector<int64_t>{kept + length - 1});

  std::vector<int64_t> found;
  for (int64_t step = 0; step < most; ++step) {
    Values outputs = language.run(inputs, cache);
    const int64_t token = outputs["next_token"]->integers[0];
    for (float score : outputs["logits"]->floats)
      if (!std::isfinite(score)) fail("language_model: its scores are not finite");
    found.push_back(token);
    bool ended = false;
    for (const Json& end : text["eos_token_ids"].items) ended = ended || end.number == token;
    if (ended) break;
    if (step == 0) {
      inputs["prefix_embeds"] = Tensor::of({1, 0, language.inputs["prefix_embeds"][2]}, std::vector<float>{});
      inputs["prefix_positions"] = Tensor::of({1, 0}, std::vector<int64_t>{});
      inputs["last_indices"] = Tensor::of({1}, std::vector<int64_t>{0});
    }
    inputs["input_ids"] = Tensor::of({1, 1}, std::vector<int64_t>{token});
    inputs["position_start"] = Tensor::of({1}, std::vector<int64_t>{start + length + step});
    inputs["write_indices"] = Tensor::of({1}, std::vector<int64_t>{kept + length + step});
  }
  show("tokens:", found);
  std::cout << words.decode(found) << '\n';
}

int main(int count, char** arguments) {
  std::vector<std::string> plain;
  std::map<std::string, const char*> options{{"--ids", nullptr}, {"--ratio", nullptr}};
  for (int i = 1; i < count; ++i) {
    if (options.count(arguments[i]) && i + 1 < count)
      options[arguments[i]] = arguments[i + 1], ++i;
    else
      plain.push_back(arguments[i]);
  }
  if (plain.size() != 3) {
    std::cerr << "usage: answer BUNDLE PICTURE.ppm PROMPT [--ids 2,277,...] [--ratio R]\n";
    return 2;
  }
  try {
    answer(plain[0], plain[1], plain[2], options["--ids"], options["--ratio"]);
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << '\n';
    return 1;
  }
  return 0;
}
