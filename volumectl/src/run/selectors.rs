//! Label selectors of claims, node selectors of volumes and topologies of classes: whether something fits them.

use std::collections::BTreeMap;

use serde::Deserialize;

type Labels = BTreeMap<String, String>;

/// `selector` of a claim: all of it must fit.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LabelSelector {
    match_labels: Labels,
    match_expressions: Vec<Requirement>,
}

impl LabelSelector {
    /// Whether labels fit.
    pub fn fits(&self, labels: &Labels) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|it| it.fits(labels))
    }
}

#[derive(Debug, Clone, Deserialize)]
struct Requirement {
    key: String,
    operator: Operator,
    #[serde(default)]
    values: Vec<String>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
    Gt,
    Lt,
}

impl Requirement {
    fn fits(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        let among = value.is_some_and(|value| self.values.contains(value));
        let number = |text: Option<&String>| text.and_then(|text| text.parse::<i64>().ok());
        let (has, bound) = (number(value), number(self.values.first()));
        match self.operator {
            Operator::In => among,
            Operator::NotIn => !among,
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::Gt => has.zip(bound).is_some_and(|(has, bound)| has > bound),
            Operator::Lt => has.zip(bound).is_some_and(|(has, bound)| has < bound),
        }
    }
}

/// `nodeAffinity.required` of a volume: one of its terms must fit.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeSelector {
    node_selector_terms: Vec<NodeTerm>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NodeTerm {
    #[serde(default)]
    match_expressions: Vec<Requirement>,
}

impl NodeSelector {
    /// Whether a node with these labels fits. A term without expressions fits none, as in Kubernetes.
    pub fn fits(&self, labels: &Labels) -> bool {
        let fits = |it: &NodeTerm| {
            !it.match_expressions.is_empty() && it.match_expressions.iter().all(|it| it.fits(labels))
        };
        self.node_selector_terms.iter().any(fits)
    }
}

/// A term of `allowedTopologies` of a class.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TopologyTerm {
    #[serde(default)]
    match_label_expressions: Vec<TopologyValues>,
}

#[derive(Debug, Clone, Deserialize)]
struct TopologyValues {
    key: String,
    values: Vec<String>,
}

impl TopologyTerm {
    /// Whether a node with these labels fits.
    pub fn fits(&self, labels: &Labels) -> bool {
        let fits = |it: &TopologyValues| labels.get(&it.key).is_some_and(|value| it.values.contains(value));
        self.match_label_expressions.iter().all(fits)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn labels() -> Labels {
        [("zone", "a"), ("rank", "7")].map(|(key, value)| (key.to_owned(), value.to_owned())).into()
    }

    #[test]
    fn expressions_fit_as_in_kubernetes() {
        for (expression, fits) in [
            (json!({"key": "zone", "operator": "In", "values": ["a", "b"]}), true),
            (json!({"key": "zone", "operator": "In", "values": ["b"]}), false),
            (json!({"key": "none", "operator": "In", "values": ["b"]}), false),
            (json!({"key": "zone", "operator": "NotIn", "values": ["a"]}), false),
            (json!({"key": "none", "operator": "NotIn", "values": ["a"]}), true),
            (json!({"key": "zone", "operator": "Exists"}), true),
            (json!({"key": "zone", "operator": "DoesNotExist"}), false),
            (json!({"key": "rank", "operator": "Gt", "values": ["6"]}), true),
            (json!({"key": "rank", "operator": "Lt", "values": ["7"]}), false),
            (json!({"key": "zone", "operator": "Gt", "values": ["6"]}), false),
        ] {
            let all = json!({"matchLabels": {"zone": "a"}, "matchExpressions": [expression]});
            let selector: LabelSelector = serde_json::from_value(all).unwrap();
            assert_eq!(selector.fits(&labels()), fits, "{expression}");
        }
    }

    #[test]
    fn one_term_of_a_node_selector_is_enough() {
        let term =
            |zone: &str| json!({"matchExpressions": [{"key": "zone", "operator": "In", "values": [zone]}]});
        let fits = |terms: Vec<Value>| {
            let selector: NodeSelector =
                serde_json::from_value(json!({ "nodeSelectorTerms": terms })).unwrap();
            selector.fits(&labels())
        };
        assert!(fits(vec![term("b"), term("a")]));
        assert!(!fits(vec![term("b")]) && !fits(vec![]) && !fits(vec![json!({})]));
    }

    #[test]
    fn a_topology_has_all_of_its_keys() {
        let of = |values: Value| serde_json::from_value::<TopologyTerm>(values).unwrap();
        assert!(
            of(json!({"matchLabelExpressions": [{"key": "zone", "values": ["b", "a"]}]})).fits(&labels())
        );
        assert!(!of(json!({"matchLabelExpressions": [{"key": "host", "values": ["a"]}]})).fits(&labels()));
    }
}
