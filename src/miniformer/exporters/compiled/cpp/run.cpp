// Outputs of a compiled program; see README.md.
//     ./main FOLDER INPUT      INPUT has token ids, such as 5,3,8
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/torch.h>

#include <iostream>
#include <sstream>

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: " << argv[0] << " FOLDER INPUT\n";
    return 2;
  }
  std::vector<int64_t> numbers;
  std::stringstream stream(argv[2]);
  for (std::string id; std::getline(stream, id, ',');) numbers.push_back(std::stoll(id));
  auto ids = torch::tensor(numbers, torch::kInt64).unsqueeze(0);
  torch::inductor::AOTIModelPackageLoader model(std::string(argv[1]) + "/model.pt2");
  auto outputs = model.run({ids, torch::ones_like(ids)});
  auto flat = outputs[0].flatten().contiguous();
  std::cout.precision(9);
  for (int64_t i = 0; i < flat.numel(); ++i) std::cout << flat.data_ptr<float>()[i] << std::endl;
}
