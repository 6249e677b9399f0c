package kubernetes

import (
	"errors"
	"fmt"
	"testing"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	"sigs.k8s.io/json"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

// objects are everything that base says, by kind and name.
type objects struct {
	namespaces  map[string]*corev1.Namespace
	deployments map[string]*appsv1.Deployment
	services    map[string]*corev1.Service
	configs     map[string]*corev1.ConfigMap
	scalers     map[string]*autoscalingv2.HorizontalPodAutoscaler
	budgets     map[string]*policyv1.PodDisruptionBudget
	policies    map[string]*networkingv1.NetworkPolicy
	monitors    map[string]*monitoringv1.ServiceMonitor
	pods        map[string]*monitoringv1.PodMonitor
}

// build runs kustomize over base and decodes what comes out. A field that the API does not know is an error.
func build(t *testing.T) *objects {
	t.Helper()
	resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), "base")
	if err != nil {
		t.Fatal(err)
	}
	o := &objects{
		map[string]*corev1.Namespace{}, map[string]*appsv1.Deployment{}, map[string]*corev1.Service{}, map[string]*corev1.ConfigMap{},
		map[string]*autoscalingv2.HorizontalPodAutoscaler{}, map[string]*policyv1.PodDisruptionBudget{},
		map[string]*networkingv1.NetworkPolicy{}, map[string]*monitoringv1.ServiceMonitor{}, map[string]*monitoringv1.PodMonitor{},
	}
	for _, r := range resources.Resources() {
		text, err := r.AsYAML()
		if err != nil {
			t.Fatal(err)
		}
		if err := o.add(r.GetApiVersion()+" "+r.GetKind(), r.GetName(), text); err != nil {
			t.Errorf("%s %s: %v", r.GetKind(), r.GetName(), err)
		}
		if r.GetKind() != "Namespace" && r.GetNamespace() != "goshield" {
			t.Errorf("%s %s: namespace %q, want goshield", r.GetKind(), r.GetName(), r.GetNamespace())
		}
	}
	return o
}

func (o *objects) add(kind, name string, text []byte) error {
	switch kind {
	case "v1 Namespace":
		return decode(o.namespaces, name, text)
	case "apps/v1 Deployment":
		return decode(o.deployments, name, text)
	case "v1 Service":
		return decode(o.services, name, text)
	case "v1 ConfigMap":
		return decode(o.configs, name, text)
	case "autoscaling/v2 HorizontalPodAutoscaler":
		return decode(o.scalers, name, text)
	case "policy/v1 PodDisruptionBudget":
		return decode(o.budgets, name, text)
	case "networking.k8s.io/v1 NetworkPolicy":
		return decode(o.policies, name, text)
	case "monitoring.coreos.com/v1 ServiceMonitor":
		return decode(o.monitors, name, text)
	case "monitoring.coreos.com/v1 PodMonitor":
		return decode(o.pods, name, text)
	default:
		return fmt.Errorf("a kind that no test knows: %s", kind)
	}
}

func decode[T any](into map[string]*T, name string, text []byte) error {
	into[name] = new(T)
	asJSON, err := yaml.YAMLToJSONStrict(text)
	if err != nil {
		return err
	}
	// Not yaml.UnmarshalStrict: it takes clusterIp for clusterIP, which the API server drops.
	unknown, err := json.UnmarshalStrict(asJSON, into[name])
	return errors.Join(append(unknown, err)...)
}
