// Package kubernetes has tests only: they build deploy/kubernetes/base as kustomize does, decode every
// object strictly into the types of the Kubernetes API, and hold them against each other and against
// the configurations that the services load.
package kubernetes
