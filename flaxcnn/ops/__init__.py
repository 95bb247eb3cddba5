"""Operations that linen lacks, with torch's semantics: pooling with ceil mode, adaptive pooling, LRN."""
