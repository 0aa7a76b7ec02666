#include "dlpack.h"
