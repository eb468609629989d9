"""Operations of the networks. Each has a public function, a reference implementation, and fast paths."""
