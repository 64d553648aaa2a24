// Greedy decoding with compiled programs; see README.md.
//     ./main FOLDER NUM_TOKENS PROMPT [SOURCE]      PROMPT and SOURCE are token ids, such as 5,3,8
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/torch.h>

#include <iostream>
#include <memory>
#include <sstream>

using Loader = torch::inductor::AOTIModelPackageLoader;
using Tensors = std::vector<at::Tensor>;

// A row of token ids, [1, T].
at::Tensor parse_ids(const std::string& text) {
  std::vector<int64_t> ids;
  std::stringstream stream(text);
  for (std::string id; std::getline(stream, id, ',');) ids.push_back(std::stoll(id));
  return torch::tensor(ids, torch::kInt64).unsqueeze(0);
}

// Keys and values of one masked column; the package has the numbers of heads and their widths.
Tensors empty_past(Loader& decoder) {
  Tensors past;
  std::stringstream sizes(decoder.get_metadata()["past"]);
  char times;
  for (int64_t heads, width; sizes >> heads >> times >> width;)
    past.push_back(torch::zeros({1, heads, 1, width}));
  return past;
}

int main(int argc, char** argv) {
  if (argc < 4) {
    std::cerr << "usage: " << argv[0] << " FOLDER NUM_TOKENS PROMPT [SOURCE]\n";
    return 2;
  }
  const std::string folder = argv[1];
  Loader decoder(folder + "/decoder.pt2");
  std::unique_ptr<Loader> encoder;  // lives as long as its outputs
  Tensors memory;
  if (argc > 4) {  // keys and values of the source, and its mask
    auto source = parse_ids(argv[4]), mask = torch::ones_like(source);
    encoder = std::make_unique<Loader>(folder + "/encoder.pt2");
    memory = encoder->run({source, mask});
    memory.push_back(mask);
  }
  auto ids = parse_ids(argv[3]);
  auto mask = torch::cat({torch::zeros({1, 1}, torch::kInt64), torch::ones_like(ids)}, 1);
  auto past = empty_past(decoder);
  for (int step = std::stoi(argv[2]); step > 0; --step) {
    Tensors inputs{ids, mask};
    inputs.insert(inputs.end(), past.begin(), past.end());
    inputs.insert(inputs.end(), memory.begin(), memory.end());
    inputs.push_back(torch::full({1}, ids.size(1) - 1, torch::kInt64));  // the last column
    auto outputs = decoder.run(inputs);
    ids = outputs[0].argmax(-1);
    past.assign(outputs.begin() + 1, outputs.end());
    mask = torch::cat({mask, torch::ones_like(ids)}, 1);
    std::cout << ids.item<int64_t>() << std::endl;
  }
}
