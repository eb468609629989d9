"""Operations of the networks: a public function, a reference, and fast paths for each."""
