package auth

import "time"

// WaitFor sets how long the server's writes wait for a replica. It may be called after Start, before the first request.
func (s *Server) WaitFor(d time.Duration) { s.store.WaitFor(d) }
