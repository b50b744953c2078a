// A reader of JSON, as far as catp.json and tokenizer.json need one.
#pragma once
#include <cstdlib>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

struct Json {
  enum Kind { Null, Bool, Number, Text, List, Object } kind = Null;
  double number = 0;  // of a Bool 0 or 1; ids are exact, they are below 2^53
  std::string text;   // UTF-8
  std::vector<Json> items;
  std::map<std::string, Json> fields;

  // A field that is absent is null, as catp.json means it.
  const Json& operator[](const std::string& name) const {
    static const Json absent;
    auto found = fields.find(name);
    return found == fields.end() ? absent : found->second;
  }
  explicit operator bool() const { return kind != Null; }
};

class JsonReader {
 public:
  static Json parse(const std::string& content) {
    JsonReader reader(content);
    Json value = reader.value(0);
    reader.skip();
    if (reader.at_ != content.size()) reader.fail();
    return value;
  }

 private:
  explicit JsonReader(const std::string& content) : content_(content) {}

  [[noreturn]] void fail() const { throw std::runtime_error("not JSON at byte " + std::to_string(at_)); }
  char peek() const { return at_ < content_.size() ? content_[at_] : '\0'; }
  void skip() {
    while (at_ < content_.size() && std::string(" \t\r\n").find(content_[at_]) != std::string::npos) ++at_;
  }
  void expect(const std::string& word) {
    if (content_.compare(at_, word.size(), word) != 0) fail();
    at_ += word.size();
  }
  bool next(char end) {  // whether another item follows
    skip();
    if (peek() == ',') return ++at_, true;
    if (peek() != end) fail();
    return ++at_, false;
  }

  Json value(int depth) {
    if (depth > 100) fail();
    skip();
    Json found;
    if (peek() == '{') {
      found.kind = Json::Object;
      ++at_, skip();
      if (peek() == '}') return ++at_, found;
      do {
        skip();
        std::string name = text();
        skip(), expect(":");
        found.fields[name] = value(depth + 1);
      } while (next('}'));
    } else if (peek() == '[') {
      found.kind = Json::List;
      ++at_, skip();
      if (peek() == ']') return ++at_, found;
      do found.items.push_back(value(depth + 1));
      while (next(']'));
    } else if (peek() == '"') {
      found.kind = Json::Text;
      found.text = text();
    } else if (peek() == 't' || peek() == 'f') {
      found.kind = Json::Bool;
      found.number = peek() == 't';
      expect(found.number ? "true" : "false");
    } else if (peek() == 'n') {
      expect("null");
    } else {
      char* end = nullptr;
      found.kind = Json::Number;
      found.number = std::strtod(content_.c_str() + at_, &end);
      if (end == content_.c_str() + at_) fail();
      at_ = end - content_.c_str();
    }
    return found;
  }

  std::string text() {
    expect("\"");
    std::string found;
    while (peek() != '"') {
      if (at_ >= content_.size()) fail();
      char c = content_[at_++];
      if (c != '\\') {
        found += c;
        continue;
      }
      static const std::map<char, char> plain{{'n', '\n'}, {'t', '\t'}, {'r', '\r'}, {'b', '\b'}, {'f', '\f'}};
      char escaped = peek();
      ++at_;
      if (escaped != 'u') {
        auto other = plain.find(escaped);
        found += other == plain.end() ? escaped : other->second;
        continue;
      }
      unsigned code = hex();
      if (code >= 0xD800 && code < 0xDC00) expect("\\u"), code = 0x10000 + ((code - 0xD800) << 10) + (hex() - 0xDC00);
      append_utf8(found, code);
    }
    return ++at_, found;
  }

  unsigned hex() {
    if (at_ + 4 > content_.size()) fail();
    unsigned code = std::stoul(content_.substr(at_, 4), nullptr, 16);
    return at_ += 4, code;
  }

 public:
  static void append_utf8(std::string& text, unsigned code) {
    if (code < 0x80) {
      text += static_cast<char>(code);
      return;
    }
    int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    text += static_cast<char>((0xFF << (7 - more) & 0xFF) | (code >> 6 * more));
    while (more--) text += static_cast<char>(0x80 | (code >> 6 * more & 0x3F));
  }

 private:
  const std::string& content_;
  size_t at_ = 0;
};
