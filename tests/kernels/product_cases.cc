#include "product.cc"

#include "cases.h"

namespace ewm {

static const Row of_product[] = {
    {"product plain", &product<Plain, BiasRelu>},
    {"product direct", &product<Direct, BiasRelu>},
    {"product gathered", &product<Gathered, ResidualScattered>},
    {"product norm", &product<Norm, BiasRelu>},
};
static const Rows rows(of_product);

}  // namespace ewm
