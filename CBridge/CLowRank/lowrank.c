#include "lowrank.h"
