from .ansatz import (
    Ansatz as Ansatz,
    all_to_all as all_to_all,
    brick as brick,
    cx as cx,
    cz as cz,
    linear as linear,
    ring as ring,
    rotations as rotations,
)
from .bit_packing import PackedNetwork as PackedNetwork, pack as pack
from .classifier import QuantumHypernetworkClassifier as QuantumHypernetworkClassifier
from .cost import (
    Cost as Cost,
    Truth as Truth,
    cross_entropy as cross_entropy,
    idle_bits as idle_bits,
    squared_error as squared_error,
    truth as truth,
)
from .data import Dataset as Dataset, digits as digits, gaussians as gaussians, mnist as mnist
from .export import draw as draw, onnx_file as onnx_file, qasm3 as qasm3
from .hardware import (
    CountsSummary as CountsSummary,
    Depolarising as Depolarising,
    evaluate_counts as evaluate_counts,
    noisy_born as noisy_born,
    parameter_shift as parameter_shift,
    sampled_energies as sampled_energies,
    train_shots as train_shots,
)
from .hypernetwork import (
    Success as Success,
    Trained as Trained,
    energy as energy,
    entropy as entropy,
    evaluate as evaluate,
    free_energy as free_energy,
    success as success,
    tail_mean as tail_mean,
    train_adam as train_adam,
    train_lbfgs as train_lbfgs,
)
from .matrix_product import MatrixProduct as MatrixProduct, matrix_product as matrix_product, train_score as train_score
from .oracle import Oracle as Oracle
from .search import (
    Found as Found,
    annealing as annealing,
    genetic as genetic,
    local_search as local_search,
    random_search as random_search,
    reinforce as reinforce,
    straight_through as straight_through,
)
from .space import (
    BinaryMLP as BinaryMLP,
    BinaryNetwork as BinaryNetwork,
    Choice as Choice,
    Switch as Switch,
    bits_of as bits_of,
    codes_of as codes_of,
)
from .statevector import amplitudes as amplitudes, born as born, sample as sample
from .walsh import qubo as qubo, walsh as walsh, walsh_weights as walsh_weights
