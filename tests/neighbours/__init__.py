"""Other people's software with models of this package: `make neighbours`. No part of the tests, but run beside them."""
