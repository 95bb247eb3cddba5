"""Operations with exact semantics and gradients, computed as each platform is quick at."""
