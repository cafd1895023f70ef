"""BibTeX of the papers behind the methods."""

FEYNMAN_KAC_CORRECTORS = """\
@inproceedings{skreta2025feynman,
  title     = {{Feynman-Kac} Correctors in Diffusion: Annealing, Guidance, and
               Product of Experts},
  author    = {Skreta, Marta and Akhound-Sadegh, Tara and Ohanesian, Viktor and
               Bondesan, Roberto and Aspuru-Guzik, Al{\\'a}n and Doucet, Arnaud and
               Brekelmans, Rob and Tong, Alexander and Neklyudov, Kirill},
  booktitle = {Proceedings of the 42nd International Conference on Machine Learning},
  series    = {Proceedings of Machine Learning Research},
  volume    = {267},
  pages     = {55906--55949},
  year      = {2025},
  eprint    = {2503.02819},
  archivePrefix = {arXiv}
}"""

SUPERDIFF = """\
@inproceedings{skreta2025superposition,
  title     = {The Superposition of Diffusion Models Using the {It{\\^o}} Density
               Estimator},
  author    = {Skreta, Marta and Atanackovic, Lazar and Bose, Avishek Joey and
               Tong, Alexander and Neklyudov, Kirill},
  booktitle = {The Thirteenth International Conference on Learning Representations},
  year      = {2025},
  eprint    = {2412.17762},
  archivePrefix = {arXiv}
}"""

QUANTUM_HYPERNETWORKS = """\
@article{carrasquilla2023quantum,
  title     = {Quantum {HyperNetworks}: Training Binary Neural Networks in
               Quantum Superposition},
  author    = {Carrasquilla, Juan and Hibat-Allah, Mohamed and Inack, Estelle and
               Makhzani, Alireza and Neklyudov, Kirill and Taylor, Graham W. and
               Torlai, Giacomo},
  journal   = {arXiv preprint arXiv:2301.08292},
  year      = {2023},
  eprint    = {2301.08292},
  archivePrefix = {arXiv}
}"""

QUANTUM_HYPERNETWORKS_VARIATIONAL = """\
@article{nepote2025variational,
  title     = {Variational Inference for Quantum {HyperNetworks}},
  author    = {Nepote, Luca and Lh{\\'e}ritier, Alix and Bondoux, Nicolas and
               Kountouris, Marios and Filippone, Maurizio},
  journal   = {arXiv preprint arXiv:2506.05888},
  year      = {2025},
  eprint    = {2506.05888},
  archivePrefix = {arXiv}
}"""

WASSERSTEIN_LAGRANGIAN_FLOWS = """\
@inproceedings{neklyudov2024computational,
  title     = {A Computational Framework for Solving {Wasserstein} {Lagrangian} Flows},
  author    = {Neklyudov, Kirill and Brekelmans, Rob and Tong, Alexander and
               Atanackovic, Lazar and Liu, Qiang and Makhzani, Alireza},
  booktitle = {Proceedings of the 41st International Conference on Machine Learning},
  series    = {Proceedings of Machine Learning Research},
  volume    = {235},
  year      = {2024},
  eprint    = {2310.10649},
  archivePrefix = {arXiv}
}"""

OT_FLOW_MATCHING = """\
@article{tong2024improving,
  title     = {Improving and Generalizing Flow-Based Generative Models with
               Minibatch Optimal Transport},
  author    = {Tong, Alexander and Fatras, Kilian and Malkin, Nikolay and
               Huguet, Guillaume and Zhang, Yanlei and Rector-Brooks, Jarrid and
               Wolf, Guy and Bengio, Yoshua},
  journal   = {Transactions on Machine Learning Research},
  year      = {2024},
  eprint    = {2302.00482},
  archivePrefix = {arXiv}
}"""

WASSERSTEIN_SPLINES = """\
@inproceedings{chewi2021fast,
  title     = {Fast and Smooth Interpolation on {Wasserstein} Space},
  author    = {Chewi, Sinho and Clancy, Julien and Le Gouic, Thibaut and
               Rigollet, Philippe and Stepaniants, George and Stromme, Austin J.},
  booktitle = {Proceedings of the 24th International Conference on Artificial
               Intelligence and Statistics},
  series    = {Proceedings of Machine Learning Research},
  volume    = {130},
  pages     = {3061--3069},
  year      = {2021},
  eprint    = {2010.12101},
  archivePrefix = {arXiv}
}"""

DIFFOPT = """\
@inproceedings{kong2025diffusion,
  title     = {Diffusion Models as Constrained Samplers for Optimization with
               Unknown Constraints},
  author    = {Kong, Lingkai and Du, Yuanqi and Mu, Wenhao and Neklyudov, Kirill and
               De Bortoli, Valentin and Wu, Dongxia and Wang, Haorui and Ferber, Aaron and
               Ma, Yi-An and Gomes, Carla P. and Zhang, Chao},
  booktitle = {Proceedings of the 28th International Conference on Artificial
               Intelligence and Statistics},
  series    = {Proceedings of Machine Learning Research},
  volume    = {258},
  pages     = {4582--4590},
  year      = {2025},
  eprint    = {2402.18012},
  archivePrefix = {arXiv}
}"""

SMC_SAMPLERS = """\
@article{delmoral2006sequential,
  title     = {Sequential {Monte Carlo} Samplers},
  author    = {Del Moral, Pierre and Doucet, Arnaud and Jasra, Ajay},
  journal   = {Journal of the Royal Statistical Society: Series B},
  volume    = {68},
  number    = {3},
  pages     = {411--436},
  year      = {2006}
}"""

META_FLOW_MATCHING = """\
@inproceedings{atanackovic2025meta,
  title     = {Meta Flow Matching: Integrating Vector Fields on the {Wasserstein} Manifold},
  author    = {Atanackovic, Lazar and Zhang, Xi and Amos, Brandon and
               Blanchette, Mathieu and Lee, Leo J. and Bengio, Yoshua and
               Tong, Alexander and Neklyudov, Kirill},
  booktitle = {International Conference on Learning Representations},
  year      = {2025},
  eprint    = {2408.14608},
  archivePrefix = {arXiv}
}"""

MOLLEO = """\
@inproceedings{wang2025efficient,
  title     = {Efficient Evolutionary Search Over Chemical Space with Large Language Models},
  author    = {Wang, Haorui and Skreta, Marta and Ser, Cher-Tian and Gao, Wenhao and
               Kong, Lingkai and Strieth-Kalthoff, Felix and Duan, Chenru and
               Zhuang, Yuchen and Yu, Yue and Zhu, Yanqiao and Du, Yuanqi and
               Aspuru-Guzik, Al{\\'a}n and Neklyudov, Kirill and Zhang, Chao},
  booktitle = {International Conference on Learning Representations},
  year      = {2025},
  eprint    = {2406.16976},
  archivePrefix = {arXiv}
}"""

GRAPH_GA = """\
@article{jensen2019graph,
  title     = {A graph-based genetic algorithm and generative model/{Monte Carlo} tree
               search for the exploration of chemical space},
  author    = {Jensen, Jan H.},
  journal   = {Chemical Science},
  volume    = {10},
  number    = {12},
  pages     = {3567--3572},
  year      = {2019}
}"""

DOOBS_LAGRANGIAN = """\
@inproceedings{du2024doob,
  title     = {{Doob's Lagrangian}: A Sample-Efficient Variational Approach to
               Transition Path Sampling},
  author    = {Du, Yuanqi and Plainer, Michael and Brekelmans, Rob and Duan, Chenru
               and No{\\'e}, Frank and Gomes, Carla P. and Aspuru-Guzik, Al{\\'a}n and
               Neklyudov, Kirill},
  booktitle = {Advances in Neural Information Processing Systems},
  volume    = {37},
  pages     = {65791--65822},
  year      = {2024},
  eprint    = {2410.07974},
  archivePrefix = {arXiv}
}"""

WASSERSTEIN_QMC = """\
@inproceedings{neklyudov2023wasserstein,
  title     = {Wasserstein Quantum {Monte Carlo}: A Novel Approach for Solving the
               Quantum Many-Body {Schr{\\"o}dinger} Equation},
  author    = {Neklyudov, Kirill and Nys, Jannes and Thiede, Luca and
               Carrasquilla, Juan and Liu, Qiang and Welling, Max and
               Makhzani, Alireza},
  booktitle = {Advances in Neural Information Processing Systems},
  volume    = {36},
  year      = {2023},
  eprint    = {2307.07050},
  archivePrefix = {arXiv}
}"""

PSIFORMER = """\
@inproceedings{vonglehn2023selfattention,
  title     = {A Self-Attention Ansatz for Ab-initio Quantum Chemistry},
  author    = {von Glehn, Ingrid and Spencer, James S. and Pfau, David},
  booktitle = {The Eleventh International Conference on Learning Representations},
  year      = {2023},
  eprint    = {2211.13672},
  archivePrefix = {arXiv}
}"""

FORWARD_LAPLACIAN = """\
@article{li2024computational,
  title     = {A computational framework for neural network-based variational
               {Monte Carlo} with {Forward Laplacian}},
  author    = {Li, Ruichen and Ye, Haotian and Jiang, Du and Wen, Xuelan and
               Wang, Chuwei and Li, Zhe and Li, Xiang and He, Di and Chen, Ji and
               Ren, Weiluo and Wang, Liwei},
  journal   = {Nature Machine Intelligence},
  volume    = {6},
  pages     = {209--219},
  year      = {2024}
}"""
